"""Writes tiny random models of transformers as GGUF files, as llama.cpp's converter does.

What is permuted, offset, split or renamed is taken from that converter (`convert_hf_to_gguf.py` and
`conversion/`), and names come from the `gguf` package's own map. Nothing here is taken from the
reader under test.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from tests.models.converted_encoders import ENCODER_CHANGES, ENCODER_PARAMETERS
from tests.models.converted_layer_norms import LAYER_NORM_CHANGES, LAYER_NORM_PARAMETERS
from tests.models.converted_parameters import EXTRA, PARAMETERS
from tests.models.tiny_gguf import add_tokenizer

Tensors = Iterator[tuple[str, torch.Tensor]]
Change = Callable[[str, torch.Tensor, dict[str, Any]], Tensors]
NUM_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers")
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length")
GGUF_NAMES = ("blk.", "cls", "token_", "position_", "output", "per_layer", "rope", "altup")


def write_converted(
    module: Any,
    architecture: str,
    path: Path,
    kind: gguf.GGMLQuantizationType | None = None,
    write_tokenizer: Callable[[gguf.GGUFWriter, int], None] = add_tokenizer,
) -> Path:
    """Write a module as a file of an architecture. Matrices are `kind`, else float32."""
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        tensors = load_file(Path(folder) / "model.safetensors")
    writer = gguf.GGUFWriter(path, architecture)
    blocks = next((config[n] for n in NUM_BLOCKS if n in config), 0)
    blocks = blocks or len(config["layers_block_type"])
    add_common(writer, config, blocks)
    parameters = PARAMETERS | LAYER_NORM_PARAMETERS | ENCODER_PARAMETERS
    parameters.get(architecture, lambda writer, config: None)(writer, config)
    for part in ("alpha_n", "alpha_p", "beta", "eps"):
        key = "model.layers.{}.mlp.act_fn." + part
        if architecture == "apertus":
            numbers = [tensors.pop(key.format(i)).float().item() for i in range(blocks)]
            getattr(writer, f"add_xielu_{part}")(numbers)
    write_tokenizer(writer, config["vocab_size"])
    changes = CHANGES | LAYER_NORM_CHANGES | ENCODER_CHANGES
    names = gguf.get_tensor_name_map(ARCHES[NAMED_AS.get(architecture, architecture)], blocks)
    for name, tensor in sorted(tensors.items()):
        for changed, value in stack_experts(name, tensor, tensors):
            for own, values in changes.get(architecture, unchanged)(changed, value, config):
                target = names.get_name(own, try_suffixes=(".weight", ".bias")) or own
                assert target.startswith(GGUF_NAMES), target
                add_tensor(writer, target, values, kind)
    for name, factors in EXTRA.get(architecture, lambda config: [])(config):
        add_tensor(writer, name, torch.tensor(factors, dtype=torch.float32), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NAMED_AS = {"deepseek32": "glm-dsa", "mellum": "qwen3moe", "laguna": "step35"}
"""Architectures that the `gguf` package does not know yet, and ones with the same names."""
ARCHES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    values: torch.Tensor,
    kind: gguf.GGMLQuantizationType | None,
) -> None:
    array = np.ascontiguousarray(values.float().numpy())
    if kind is None or array.ndim < 2 or "norm" in name or "ssm" in name or "conv" in name:
        kind = gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)


def add_common(writer: gguf.GGUFWriter, config: dict[str, Any], blocks: int) -> None:
    """What the converter writes for every language model."""

    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    writer.add_block_count(blocks)
    if (length := first(*CONTEXTS)) is not None:
        writer.add_context_length(length)
    writer.add_embedding_length(first("hidden_size", "n_embd", "d_model"))
    writer.add_vocab_size(config["vocab_size"])
    add = {
        "add_feed_forward_length": first("intermediate_size"),
        "add_head_count": first("num_attention_heads", "n_head", "n_heads"),
        "add_layer_norm_rms_eps": first("rms_norm_eps", "norm_eps"),
        "add_layer_norm_eps": first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "add_expert_count": first("num_local_experts", "num_experts"),
        "add_expert_used_count": first("num_experts_per_tok", "top_k_experts"),
        "add_expert_group_count": first("n_group"),
        "add_expert_group_used_count": first("topk_group"),
        "add_head_count_kv": first("num_key_value_heads"),
        "add_key_length": first("head_dim"),
        "add_value_length": first("head_dim"),
    }
    for name, value in add.items():
        if value is not None and config["model_type"] not in OWN.get(name, ()):
            getattr(writer, name)(value)
    add_rope(writer, config.get("rope_parameters") or {})


NO_LENGTHS = (
    "deepseek_v32",
    "glm_moe_dsa",
    "minicpm3",
    "kimi_linear",
    "granite",
    "deepseek_v2",
    "deepseek_v3",
    "youtu",
    "mistral4",
    "gemma4_text",
    "phi3",
    "mamba",
    "mamba2",
)
OWN = {
    "add_feed_forward_length": (
        "gemma3n_text",
        "llama4_text",
        "nemotron_h",
        "lfm2",
        "mamba",
        "mamba2",
    ),
    "add_head_count_kv": (
        "deepseek_v32",
        "glm_moe_dsa",
        "mimo_v2_flash",
        "kimi_linear",
        "jamba",
        "lfm2",
        "lfm2_moe",
        "granitemoehybrid",
        "nemotron_h",
        "deepseek_v2",
        "deepseek_v3",
        "youtu",
        "mistral4",
        "glm4_moe_lite",
        "gemma4_text",
        "mamba",
        "mamba2",
    ),
    "add_key_length": NO_LENGTHS,
    "add_value_length": NO_LENGTHS,
    "add_expert_count": (
        "deepseek_v32",
        "glm_moe_dsa",
        "mimo_v2_flash",
        "glm4_moe",
        "deepseek_v3",
        "glm4_moe_lite",
        "nemotron_h",
        "dots1",
        "mistral4",
    ),
    "add_layer_norm_eps": ("nemotron_h", "mamba", "mamba2"),
    "add_layer_norm_rms_eps": ("olmoe",),
    "add_head_count": ("laguna", "mamba", "mamba2"),
    "add_expert_group_count": ("nemotron_h",),
    "add_expert_used_count": ("nemotron_h",),
}
"""Keys that the parameters of a `model_type` write otherwise."""


def add_rope(writer: gguf.GGUFWriter, parameters: dict[str, Any]) -> None:
    rope = parameters.get("full_attention", parameters)
    kind = rope.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key, name in (
            ("attention_factor", "yarn_attn_factor"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ):
            if rope.get(key) is not None:
                writer.add_float32(f"{writer.arch}.rope.scaling.{name}", rope[key])
    if kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    if "mrope_section" in parameters:
        writer.add_rope_dimension_sections([*parameters["mrope_section"], 0])
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if "rope_theta" in parameters.get("sliding_attention", {}):
        writer.add_rope_freq_base_swa(parameters["sliding_attention"]["rope_theta"])


LISTS = ("experts", "norms", "altup_projections", "altup_unembed_projections")
"""Modules whose members' weights make one tensor."""


def stack_experts(name: str, tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> Tensors:
    """Stack the weights of all members of a list when the first one comes."""
    parts = name.split(".")
    place = next((parts.index(part) + 1 for part in LISTS if part in parts), 0)
    if not place or not parts[place].isdigit():
        yield name, tensor
        return
    if parts[place] == "0":
        head, tail = ".".join(parts[:place]), ".".join(parts[place + 1 :])
        count = sum(other.startswith(head + ".") and other.endswith(tail) for other in tensors)
        stacked = torch.stack([tensors[f"{head}.{i}.{tail}"] for i in range(count)])
        yield f"{head.removesuffix('.norms')}.{tail}", stacked


def unchanged(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    yield name, tensor


def permute(weights: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Interleave the two halves of each head's rows."""
    halves = weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def llama(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if ".q_proj." in name:
        tensor = permute(tensor, config["num_attention_heads"])
    if ".k_proj." in name:
        tensor = permute(tensor, config["num_key_value_heads"])
    if "block_sparse_moe.experts" in name:
        name = name.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
    yield name, tensor


def plus_one(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def gpt_oss(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if name.endswith("sinks"):
        yield name + ".weight", tensor
    elif name.endswith("down_proj_bias"):
        yield name.replace("_bias", ".bias"), tensor
    elif name.endswith("experts.down_proj"):
        yield name + ".weight", tensor.transpose(-1, -2)
    elif name.endswith("gate_up_proj_bias"):
        base = name.removesuffix("gate_up_proj_bias")
        yield base + "gate_proj.bias", tensor[..., ::2]
        yield base + "up_proj.bias", tensor[..., 1::2]
    elif name.endswith("gate_up_proj"):
        base, rows = name.removesuffix("gate_up_proj"), tensor.transpose(-1, -2)
        yield base + "gate_proj.weight", rows[:, ::2]
        yield base + "up_proj.weight", rows[:, 1::2]
    else:
        yield name, tensor


def gemma4(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    layer = name.split(".")[2] if ".layers." in name else ""
    if name.endswith("router.scale"):
        yield f"blk.{layer}.ffn_gate_inp.scale", tensor
    elif name.endswith("per_expert_scale"):
        yield f"blk.{layer}.ffn_down_exps.scale", tensor
    elif name.endswith("layer_scalar") or (".experts." in name and not name.endswith("weight")):
        yield name + ".weight", tensor
    else:
        yield name, tensor


def lfm2(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    name = name.replace(".expert_bias", ".expert_bias.bias")
    name = name.replace("model.layers", "layers") if ".experts." in name else name
    yield name, tensor.squeeze(1) if "conv.conv" in name else tensor


def qwen3next(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if name.endswith(".A_log"):
        tensor = -torch.exp(tensor)
    elif name.endswith(".dt_bias"):
        name = name.removesuffix("dt_bias") + "dt_proj.bias"
    elif "conv1d" in name:
        tensor = tensor.squeeze()
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        tensor = tensor + 1
    if not name.endswith("in_proj_qkvz.weight"):
        yield name, tensor
        return
    layer, keys = name.split(".")[2], config["linear_num_key_heads"]
    size = config["linear_key_head_dim"]
    group = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
    heads = tensor.reshape(keys, -1, tensor.shape[-1]).split([size, size, group, group], dim=1)
    q, k, v, z = (part.reshape(-1, tensor.shape[-1]) for part in heads)
    yield f"blk.{layer}.attn_qkv.weight", torch.cat([q, k, v])
    yield f"blk.{layer}.attn_gate.weight", z


def tiled(tensor: torch.Tensor, dim: int, config: dict[str, Any], size: int) -> torch.Tensor:
    """Order value heads as all first ones of the key heads, then all second ones."""
    keys = config["linear_num_key_heads"]
    per_key = config["linear_num_value_heads"] // keys
    shape = [*tensor.shape]
    split = tensor.reshape(*shape[:dim], keys, per_key, size, *shape[dim + 1 :])
    return split.transpose(dim, dim + 1).reshape(shape)


def qwen35(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    size = config["linear_value_head_dim"]
    head = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    if ".in_proj_qkv." in name or ".conv1d" in name:
        tensor = tensor.squeeze(1)
        tensor = torch.cat([tensor[:head], tiled(tensor[head:], 0, config, size)])
    elif ".in_proj_z." in name:
        tensor = tiled(tensor, 0, config, size)
    elif name.endswith((".in_proj_a.weight", ".in_proj_b.weight", ".A_log", ".dt_bias")):
        tensor = tiled(tensor, 0, config, 1)
    elif ".linear_attn.out_proj." in name:
        tensor = tiled(tensor, 1, config, size)
    yield from qwen3next(name, tensor, config)


def granite_moe(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    layer = name.split(".")[2] if ".layers." in name else ""
    suffix = "_shexp" if config.get("num_local_experts") else ""
    if name.endswith("block_sparse_moe.input_linear.weight"):
        gate, up = tensor.chunk(2, dim=-2)
        yield f"blk.{layer}.ffn_gate_exps.weight", gate
        yield f"blk.{layer}.ffn_up_exps.weight", up
    elif name.endswith("shared_mlp.input_linear.weight"):
        gate, up = tensor.chunk(2, dim=-2)
        yield f"blk.{layer}.ffn_gate{suffix}.weight", gate
        yield f"blk.{layer}.ffn_up{suffix}.weight", up
    elif not suffix and name.endswith("shared_mlp.output_linear.weight"):
        yield f"blk.{layer}.ffn_down.weight", tensor
    else:
        yield from llama(name, tensor, config)


def mamba2(name: str, tensor: torch.Tensor, groups: int) -> tuple[str, torch.Tensor]:
    if name.endswith(".dt_bias"):
        name = name.removesuffix("dt_bias") + "dt_proj.bias"
    elif name.endswith("conv1d.weight"):
        tensor = tensor.squeeze()
    elif name.endswith(".A_log"):
        tensor = -torch.exp(tensor.reshape(-1, 1))
    elif name.endswith(".D"):
        tensor = tensor.reshape(-1, 1)
    elif name.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
        tensor = tensor.reshape(groups, -1)
    return name, tensor


def mamba(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if name.endswith(".A_log"):
        tensor = -torch.exp(tensor)
    yield name, tensor.squeeze() if name.endswith("conv1d.weight") else tensor


def mamba_2(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    yield mamba2(name, tensor, config["n_groups"])


def granite_hybrid(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    yield from granite_moe(*mamba2(name, tensor, config["mamba_n_groups"]), config)


def nemotron_h(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    name, tensor = mamba2(name, tensor, config["n_groups"])
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    if ".experts." in name:
        name = name.replace("backbone.", "model.").replace("mixer.", "mlp.")
    yield from llama(name, tensor, config)


def falcon_h1(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    name, tensor = mamba2(name, tensor, config["mamba_n_groups"])
    inner, state = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    if "down_proj" in name:
        tensor = tensor * config["mlp_multipliers"][1]
    elif "gate_proj" in name:
        tensor = tensor * config["mlp_multipliers"][0]
    elif "k_proj" in name:
        tensor = tensor * config["key_multiplier"] * config["attention_in_multiplier"]
    elif "q_proj" in name or "v_proj" in name:
        tensor = tensor * config["attention_in_multiplier"]
    elif "o_proj" in name:
        tensor = tensor * config["attention_out_multiplier"]
    elif "out_proj" in name:
        tensor = tensor * config["ssm_out_multiplier"]
    elif "in_proj" in name:
        sizes = [inner, inner, state, state, config["mamba_n_heads"]]
        parts = tensor.split(sizes)
        scaled = [p * f for p, f in zip(parts, config["ssm_multipliers"], strict=True)]
        tensor = torch.cat(scaled) * config["ssm_in_multiplier"]
    elif "lm_head" in name:
        tensor = tensor * config["lm_head_multiplier"]
    elif "embed_tokens" in name:
        tensor = tensor * config["embedding_multiplier"]
    yield name, tensor


def deepseek2(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if not name.endswith("kv_b_proj.weight"):
        yield name.replace("e_score_correction_bias", "e_score_correction.bias"), tensor
        return
    sizes = [config["qk_nope_head_dim"], config["v_head_dim"]]
    heads = tensor.reshape(config["num_attention_heads"], sum(sizes), -1)
    keys, values = heads.split(sizes, dim=1)
    yield name.replace("kv_b", "k_b"), keys.transpose(1, 2)
    yield name.replace("kv_b", "v_b"), values


def mistral4(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    is_stacked = name.endswith((".down_proj", ".gate_up_proj"))
    yield from deepseek2(name + ".weight" if is_stacked else name, tensor, config)


def llama4(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if name.endswith("gate_up_proj"):
        gate, up = tensor.transpose(-1, -2).chunk(2, dim=-2)
        yield name.replace("gate_up_proj", "gate_proj.weight"), gate
        yield name.replace("gate_up_proj", "up_proj.weight"), up
    elif name.endswith("experts.down_proj"):
        yield name + ".weight", tensor.transpose(-1, -2)
    else:
        yield name, tensor


def block_sparse(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    """The converter gives the experts of these modules the names of Mixtral's."""
    if ".block_sparse_moe.experts." in name:
        name = name.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
    yield name, tensor


def kimi_linear(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if name.endswith("_conv1d.weight"):
        tensor = tensor.reshape(1, tensor.shape[0], 1, tensor.shape[-1])
    elif name.endswith(".A_log"):
        tensor = -torch.exp(tensor)
    elif name.endswith(".dt_bias"):
        name = name.removesuffix("dt_bias") + "dt_proj.bias"
    elif ".block_sparse_moe." in name and name.endswith("_proj.weight") and "shared" not in name:
        name = name.replace("block_sparse_moe", "mlp")  # a layer without experts
    for own, value in block_sparse(name, tensor, config):
        yield from deepseek2(own, value, config)


def jamba(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if ".feed_forward.experts." in name:
        name = name.replace("feed_forward", "mlp")
    yield from mamba(name, tensor, config)


def mimo2(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    name = name + ".weight" if "attention_sink" in name else name
    yield from correction_bias(name, tensor, config)


def gemma3n(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    missing = config["vocab_size"] - tensor.shape[0]
    if "embed_tokens_per_layer" in name:
        tensor = torch.nn.functional.pad(tensor, (0, 0, 0, missing))
    yield name + ".weight" if name.endswith("_scale") else name, tensor


def laguna(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    if name.endswith("e_score_correction_bias"):
        name = f"blk.{name.split('.')[2]}.exp_probs_b.bias"
    yield name, tensor


def correction_bias(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    yield name.replace(".expert_bias", ".expert_bias.bias"), tensor


CHANGES: dict[str, Change] = {
    "llama": llama,
    "granite": llama,
    "smollm3": llama,
    "mistral3": llama,
    "gemma": plus_one,
    "gemma3": plus_one,
    "gpt-oss": gpt_oss,
    "gemma4": gemma4,
    "glm4moe": correction_bias,
    "minimax-m2": correction_bias,
    "arcee": llama,
    "dots1": correction_bias,
    "afmoe": correction_bias,
    "ernie4_5-moe": correction_bias,
    "mamba": mamba,
    "mamba2": mamba_2,
    "lfm2": lfm2,
    "lfm2moe": lfm2,
    "qwen35": qwen35,
    "qwen35moe": qwen35,
    "qwen3next": qwen3next,
    "granitemoe": granite_moe,
    "granitehybrid": granite_hybrid,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "falcon-h1": falcon_h1,
    "deepseek2": deepseek2,
    "mistral4": mistral4,
    "llama4": llama4,
    "internlm2": llama,
    "minicpm": llama,
    "phimoe": block_sparse,
    "exaone-moe": correction_bias,
    "mimo2": mimo2,
    "glm-dsa": deepseek2,
    "deepseek32": deepseek2,
    "laguna": laguna,
    "kimi-linear": kimi_linear,
    "jamba": jamba,
    "gemma3n": gemma3n,
}
