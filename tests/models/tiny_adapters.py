"""Tiny LoRA adapters in PEFT's files, and what they add to a weight, computed with numpy."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file

BASE = "someone/base"
PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def projections(num_layers: int = 2, parts: Iterable[str] = PARTS) -> list[str]:
    return [f"model.layers.{i}.{part}" for i in range(num_layers) for part in parts]


def write_adapter(
    folder: Path,
    module: torch.nn.Module,
    names: Iterable[str],
    rank: int = 4,
    seed: int = 1,
    **config: Any,
) -> dict[str, npt.NDArray[np.float64]]:
    """Write an adapter of the linear layers `names`. Return B @ A of each, without the scale."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    products: dict[str, npt.NDArray[np.float64]] = {}
    for name in names:
        shape = module.get_submodule(name).weight.shape
        if type(module.get_submodule(name)).__name__ == "Conv1D":
            shape = shape[::-1]
        ranks = config.get("rank_pattern", {})
        r = next((value for key, value in ranks.items() if name.endswith(key)), rank)
        a = rng.normal(scale=0.3, size=(r, shape[1])).astype(np.float32)
        b = rng.normal(scale=0.3, size=(shape[0], r)).astype(np.float32)
        tensors |= {
            f"base_model.model.{name}.lora_A.weight": a,
            f"base_model.model.{name}.lora_B.weight": b,
        }
        products[name] = b.astype(np.float64) @ a.astype(np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": rank,
        "lora_alpha": 6,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["q_proj"],
        "megatron_core": "megatron.core",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return products
