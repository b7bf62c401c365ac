"""Writes a GGUF file's weights as safetensors under transformers' names, one tensor at a time.

Only the model's own PyTorch code needs this. The compiled path reads the file's quantised weights
directly. The conversion needs memory for one shard (`SHARD_BYTES`) and the largest tensor.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.gguf.config import architecture_of
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

SHARD_BYTES = 1 << 30
INDEX_NAME = "model.safetensors.index.json"

TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ARCHITECTURE_NAMES: dict[str, dict[str, str]] = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "gemma2": _GEMMA_NAMES,
    "gemma3": _GEMMA_NAMES,
}
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
# The config describes these instead.
NOT_WEIGHTS = frozenset({"rope_freqs.weight"})


def write_weights(
    gguf: GgufFile, config: HFConfig, folder: Path, dtype: torch.dtype, progress: Progress
) -> None:
    """Fill `folder` with safetensors shards of `dtype` and their index.

    Raises `UnsupportedModelError` for a tensor that the model does not have, and for a weight type
    that cannot be converted.
    """
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    shard_bytes = num_bytes = number = 0

    def flush() -> None:
        nonlocal shard, shard_bytes, number
        number += 1
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, shard_bytes = {}, 0

    for i, tensor in enumerate(gguf.tensors.values()):
        if i % 100 == 0:
            progress(f"converting {gguf.path.name}: tensor {i + 1} of {len(gguf.tensors)}")
        for name, weight in _weights_of(gguf, config, tensor, dtype):
            shard[name] = weight
            shard_bytes += weight.nbytes
            num_bytes += weight.nbytes
        if shard_bytes >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    content = {"metadata": {"total_size": num_bytes}, "weight_map": index}
    (folder / INDEX_NAME).write_text(json.dumps(content))


def module_name(gguf: GgufFile, name: str) -> str:
    """Return the transformers name of a tensor that maps to one parameter.

    A tensor with one projection of all experts gets the experts' name without their number.

    Raises `UnsupportedModelError` when the architecture has no such tensor.
    """
    top = re.fullmatch(r"(\w+)\.(weight|bias)", name)
    if top is not None and top[1] in TOP_NAMES:
        return f"{TOP_NAMES[top[1]]}.{top[2]}"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    names = LAYER_NAMES | ARCHITECTURE_NAMES.get(gguf.architecture, {})
    if layer is not None and layer[2] in EXPERTS and layer[3] == "weight":
        return f"model.layers.{layer[1]}.mlp.experts.{EXPERTS[layer[2]]}.weight"
    if layer is None or layer[2] not in names:
        raise UnsupportedModelError(
            f"{gguf.path.name}: the tensor {name} is not supported; try the model's safetensors "
            "files"
        )
    return f"model.layers.{layer[1]}.{names[layer[2]]}.{layer[3]}"


def _weights_of(
    gguf: GgufFile, config: HFConfig, tensor: GgufTensor, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    if tensor.name in NOT_WEIGHTS:
        return
    expert = re.fullmatch(r"blk\.(\d+)\.(ffn_\w+_exps)\.weight", tensor.name)
    if expert is not None and expert[2] in EXPERTS:
        for i in range(tensor.shape[0]):
            name = f"model.layers.{expert[1]}.mlp.experts.{i}.{EXPERTS[expert[2]]}.weight"
            yield name, torch.from_numpy(dequantize(tensor, i)).to(dtype)
        return
    name = module_name(gguf, tensor.name)
    values = dequantize(tensor)
    architecture = architecture_of(gguf)
    if architecture.norm_offset and name.endswith("norm.weight"):
        values = values - np.float32(architecture.norm_offset)
    if architecture.permuted_rope and re.search(r"\.[qk]_proj\.", name):
        is_query = ".q_proj." in name
        values = split_rope_pairs(values, config.num_heads if is_query else config.num_kv_heads)
    yield name, torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def dequantize(tensor: GgufTensor, index: int | None = None) -> np.ndarray:
    """Return the values of a tensor, or of its slice `index`, as float32."""
    import gguf

    data = tensor.data if index is None else tensor.data[index]
    shape = tensor.shape if index is None else tensor.shape[1:]
    try:
        values = gguf.dequantize(data, gguf.GGMLQuantizationType[tensor.type_name])
    except (NotImplementedError, KeyError) as error:
        raise UnsupportedModelError(
            f"{tensor.name}: weights of type {tensor.type_name} cannot be converted; "
            "use a file with another quantisation"
        ) from error
    # Float32 values are a read-only view of the file.
    result: np.ndarray = np.require(values, np.float32, ["C", "W"]).reshape(shape)
    return result


def split_rope_pairs(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head from interleaved RoPE pairs to two halves.

    ggml's llama rotates rows 2i and 2i + 1 together; transformers rotates rows i and i + D/2.
    """
    if rows.shape[0] % (2 * num_heads):
        raise ModelLoadError(
            "the rows of the query or key projections do not fit the number of heads; download the "
            "file again"
        )
    half = rows.shape[0] // num_heads // 2
    paired = rows.reshape(num_heads, half, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)
