"""Tiny models and batches for the tests of the native backend."""

import ctypes
from array import array
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch

from stonechat_models.backends.base import ForwardBatch, HostBatch
from stonechat_models.backends.native import NativeModel
from stonechat_models.backends.native import compile as native_compile
from stonechat_models.backends.native.bindings import Library, MatrixStruct, load_library
from stonechat_models.checkpoint.hf_config import parse_config, read_config
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from tests.nightly import nightly

BLOCK_SIZE = 16
NUM_BLOCKS = 64
VOCAB_SIZE = 203
ROUNDING = 0.012
"""Bound of the root mean square error of a float model's logits, over their spread. Attention
rounds queries, keys, probabilities and values to bfloat16."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
DELTA_RULE = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama3-rope": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 1}),
    "yarn-rope": ("LlamaConfig", {"rope_parameters": YARN_ROPE}),
    "mistral": ("MistralConfig", {"sliding_window": 21, "head_dim": 64}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 96}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 3}),
    "phi3": ("Phi3Config", {"sliding_window": 40, "partial_rotary_factor": 0.5}),
    "gemma": ("GemmaConfig", {"head_dim": 256, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 64,
            "sliding_window": 21,
            "query_pre_attn_scalar": 48,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 5.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 256,
            "sliding_window": 19,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "tie_word_embeddings": True,
        },
    ),
    "granite": (
        "GraniteConfig",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "exaone4": ("Exaone4Config", {"sliding_window": 21, "sliding_window_pattern": 3}),
    "exaone4-full": (
        "Exaone4Config",
        {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    ),
    "seed_oss": ("SeedOssConfig", {"head_dim": 64, "attention_out_bias": True}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 64,
            "num_experts": 10,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 96,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe-shares": (
        "Qwen3MoeConfig",
        {"num_experts": 24, "num_experts_per_tok": 6, "moe_intermediate_size": 64},
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": 30}),
    "qwen3_5_text": ("Qwen3_5TextConfig", {"head_dim": 64, **DELTA_RULE}),
    "qwen3_5_text-bias": (
        "Qwen3_5TextConfig",
        {
            **DELTA_RULE,
            "head_dim": 32,
            "attention_bias": True,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 2,
            "layer_types": None,
            "rope_parameters": {**YARN_ROPE, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_5_moe_text": (
        "Qwen3_5MoeTextConfig",
        {
            **DELTA_RULE,
            "head_dim": 64,
            "num_experts": 10,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 96,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "lfm2": (
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention", "conv", "conv"], "block_multiple_of": 32},
    ),
    "lfm2-bias": (
        "Lfm2Config",
        {
            "conv_bias": True,
            "conv_L_cache": 4,
            "full_attn_idxs": [2],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
    ),
}
STATEFUL = ("qwen3_5_text", "qwen3_5_text-bias", "qwen3_5_moe_text", "lfm2", "lfm2-bias")


def make_model(family: str, folder: Path, **changes: Any) -> tuple[Any, ModelFiles]:
    """Create a random module of a family and its files. All weights and biases are random."""
    import transformers

    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**{**COMMON, **settings, **changes})
    torch.manual_seed(len(family))
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                center = 1.0 if "norm" in parameter_name and not family.startswith("gemma") else 0.0
                parameter.copy_(center + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
    module.eval().save_pretrained(folder)
    config = read_config(folder / "config.json")
    files = ModelFiles(family, folder, config, None, tuple(sorted(folder.glob("*.safetensors"))))
    return module, files


def with_config(files: ModelFiles, **changes: Any) -> ModelFiles:
    """The same files, with other keys in config.json."""
    return replace(files, config=parse_config({**files.config.raw, **changes}, "config.json"))


def host_batch(batch: ForwardBatch) -> HostBatch:
    """Return a batch as arrays of the host. Its tensors are on the CPU."""
    slots = list(batch.state_slots)
    return HostBatch(
        token_ids=array("q", batch.token_ids.tolist()),
        positions=array("q", batch.positions.tolist()),
        slot_mapping=array("q", batch.slot_mapping.tolist()),
        query_start=array("i", batch.query_start.tolist()),
        block_table=array("i", batch.block_table.flatten().tolist()),
        logits_index=array("q", batch.logits_index.tolist()),
        state_slots=array("q", slots if len(slots) == len(batch.block_table) else []),
    )


class TensorModel:
    """A native model whose batches and results are tensors, as the references are."""

    def __init__(self, model: NativeModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        return torch.from_numpy(self.model.forward(host_batch(batch)))

    def forward_hidden(self, batch: ForwardBatch) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, self.model.forward_hidden(host_batch(batch))))


def load_native(files: ModelFiles, **settings: Any) -> TensorModel:
    config = EngineConfig(model=files.name, **{"threads": 2, **settings})
    model = NativeModel.load(files, config, lambda line: None)
    if model.info.keeps_state:
        model.info = replace(model.info, num_state_slots=NUM_BLOCKS)
    model.allocate_kv_cache(NUM_BLOCKS, BLOCK_SIZE)
    return TensorModel(model)


def make_batch(
    sequences: list[tuple[list[int], int, list[int]]], *, all_rows: bool = False
) -> ForwardBatch:
    """Build a batch. A sequence is (the step's tokens, position of the first, block table).

    The slot of its state has the number of its first block.
    """
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts, lengths = [0], []
    width = max(len(blocks) for _, _, blocks in sequences)
    table = torch.zeros(len(sequences), width, dtype=torch.int32)
    for i, (tokens, start, blocks) in enumerate(sequences):
        span = range(start, start + len(tokens))
        ids += tokens
        positions += span
        slots += [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in span]
        starts.append(len(ids))
        lengths.append(start + len(tokens))
        table[i, : len(blocks)] = torch.tensor(blocks)
    rows = list(range(len(ids))) if all_rows else [end - 1 for end in starts[1:]]
    return ForwardBatch(
        token_ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=table,
        logits_index=torch.tensor(rows),
        query_start_list=starts,
        context_lens_list=lengths,
        state_slots=[blocks[0] for _, _, blocks in sequences],
    )


def random_ids(count: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, vocab_size, (count,), generator=generator).tolist()
    return ids


def cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


ARCHITECTURES = ["native"]
if "sse2" in cpu_flags():
    ARCHITECTURES.append("x86-64")
if {"avx2", "fma", "f16c", "bmi2"} <= cpu_flags():
    ARCHITECTURES.append("haswell")
if {"avx512_vnni", "avx512_vbmi2", "vaes"} <= cpu_flags():
    ARCHITECTURES.append("icelake-server")  # AVX-512 without AMX and bfloat16
if {"avx2", "avx_vnni"} <= cpu_flags():
    ARCHITECTURES.append("alderlake")

# It takes three times as long to compile for any x86-64 as for one with AVX2.
DAILY = ["native", *[name for name in ("haswell", "x86-64") if name in ARCHITECTURES][:1]]
BUILDS = [*DAILY, *nightly(*(name for name in ARCHITECTURES if name not in DAILY))]
"""Parameters for tests that run with each instruction set. At night they run with all of them."""


def built_quickly() -> AbstractContextManager[object]:
    """Until it ends, libraries are compiled with few optimisations, in half of the time."""
    flags = tuple("-O1" if flag == "-O3" else flag for flag in native_compile.FLAGS)
    return patch.object(native_compile, "FLAGS", flags)


def library_of(architecture: str) -> Library:
    """The library for this processor as it is served, or one with fewer instructions."""
    if architecture == "native":
        return load_library()
    with built_quickly():
        return load_library(architecture=architecture)


def unpacked_row(library: Library, matrix: MatrixStruct, row: int) -> npt.NDArray[np.float32]:
    """Row `row` of a packed matrix, as float32[k]."""
    out = np.empty(matrix.k, dtype=np.float32)
    library.read_row(ctypes.byref(matrix), row, out.ctypes.data)
    return out
