"""What llama.cpp's converter writes for decoders whose norms subtract the mean."""

from collections.abc import Callable, Iterator

import gguf
import torch

from tests.models.converted_parameters import Config, head_dim, llama, partial_rope


def command_r(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_logit_scale(config["logit_scale"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def cohere2(writer: gguf.GGUFWriter, config: Config) -> None:
    command_r(writer, config)
    writer.add_sliding_window(config["sliding_window"])
    llama(writer, config)


def olmo(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_layer_norm_eps(1e-5)
    if config["clip_qkv"] is not None:
        writer.add_clamp_kqv(config["clip_qkv"])


def stablelm(writer: gguf.GGUFWriter, config: Config) -> None:
    partial_rope(writer, config)
    writer.add_parallel_residual(config["use_parallel_residual"])


def nemotron(writer: gguf.GGUFWriter, config: Config) -> None:
    partial_rope(writer, config)
    writer.add_layer_norm_eps(config["norm_eps"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def four_times(writer: gguf.GGUFWriter, config: Config) -> None:
    size = config.get("hidden_size") or config.get("n_embd") or config["d_model"]
    writer.add_feed_forward_length(4 * size)


def starcoder(writer: gguf.GGUFWriter, config: Config) -> None:
    four_times(writer, config)
    writer.add_head_count_kv(1)


def falcon(writer: gguf.GGUFWriter, config: Config) -> None:
    four_times(writer, config)
    writer.add_tensor_data_layout("jploski")
    writer.add_head_count_kv(config["num_kv_heads"])


def bloom(writer: gguf.GGUFWriter, config: Config) -> None:
    four_times(writer, config)
    writer.add_head_count_kv(config["n_head"])


def mpt(writer: gguf.GGUFWriter, config: Config) -> None:
    four_times(writer, config)
    writer.add_head_count_kv(config["n_heads"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_clamp_kqv(config["attn_config"]["clip_qkv"])
    writer.add_max_alibi_bias(config["attn_config"]["alibi_bias_max"])


Tensors = Iterator[tuple[str, torch.Tensor]]


def plus_one(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def permuted(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    if ".q_proj." in name or ".k_proj." in name:
        halves = tensor.reshape(-1, 2, head_dim(config) // 2, *tensor.shape[1:])
        tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
    yield name, tensor


def transposed(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    is_conv = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    yield name, tensor.T if is_conv else tensor


def queries_first(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    """The rows of all queries, then of all keys, then of all values."""
    if "query_key_value" in name:
        heads = config.get("num_attention_heads") or config["n_head"]
        key_heads = config.get("num_kv_heads", heads)
        groups = tensor.reshape(
            key_heads, heads // key_heads + 2, config["hidden_size"] // heads, *tensor.shape[1:]
        )
        parts = groups[:, :-2], groups[:, -2], groups[:, -1]
        tensor = torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])
    yield name.removeprefix("transformer.") if "norm" in name else name, tensor


LAYER_NORM_PARAMETERS: dict[str, Callable[[gguf.GGUFWriter, Config], None]] = {
    "command-r": command_r,
    "cohere2": cohere2,
    "olmo": olmo,
    "stablelm": stablelm,
    "nemotron": nemotron,
    "jais2": llama,
    "phi2": partial_rope,
    "gptneox": stablelm,
    "gpt2": four_times,
    "starcoder": starcoder,
    "falcon": falcon,
    "bloom": bloom,
    "mpt": mpt,
}
LAYER_NORM_CHANGES: dict[str, Callable[[str, torch.Tensor, Config], Tensors]] = {
    "olmo": permuted,
    "nemotron": plus_one,
    "gptneox": queries_first,
    "gpt2": transposed,
    "falcon": queries_first,
    "bloom": queries_first,
}
