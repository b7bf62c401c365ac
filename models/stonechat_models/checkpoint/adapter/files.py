"""Reads a LoRA adapter in PEFT's files, to merge it into a model's weights or to compute it beside.

It changes a weight to W + scale * B @ A, with A [r, in] and B [out, r]; the scale is alpha / r, or
alpha / sqrt(r) for rank-stabilised adapters. Variants that compute more than this are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_models.checkpoint.adapter.layers import LoraLayer, layer_tensors, lora_layers
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_file import read_json, reading

if TYPE_CHECKING:
    import torch

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PLAIN_KEYS = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision"),
        *("auto_mapping", "inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
        *("use_rslora", "lora_dropout", "target_modules", "exclude_modules", "layers_pattern"),
        *("layers_to_transform", "fan_in_fan_out", "bias", "init_lora_weights", "eva_config"),
        *("corda_config", "loftq_config", "megatron_config", "megatron_core", "runtime_config"),
        *("qalora_group_size", "ensure_weight_tying"),
    }
)
"""Keys of adapter_config.json that change nothing but the terms of the formula above."""
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the model's own weights as they are."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk. `layers`: by the names of the weights in the model that it changes."""

    name: str
    folder: Path
    base: str
    """The model that it was trained on; empty if its config does not say it."""
    layers: Mapping[str, LoraLayer]

    @property
    def rank(self) -> int:
        """The highest rank of its layers."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def num_elements(self) -> int:
        """How many numbers its matrices have."""
        return sum(layer.rank * sum(layer.shape) for layer in self.layers.values())

    @property
    def files(self) -> tuple[Path, Path]:
        """The files that decide what is added to the model's weights."""
        return self.folder / CONFIG_FILE, self.folder / WEIGHTS_FILE

    @property
    def description(self) -> str:
        ranks = sorted({layer.rank for layer in self.layers.values()})
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return f"{self.name} (rank {shown}, {len(self.layers)} weights)"

    def merged(
        self, name: str, weight: "torch.Tensor", *, transposed: bool = False
    ) -> "torch.Tensor":
        """Return `weight` [out, in] with what the adapter adds to it, in the same dtype.

        `transposed`: the weight is stored as [in, out]. Raises `ModelLoadError` if the shapes do
        not match, and `UnsupportedModelError` for a weight that is quantised.
        """
        if not weight.is_floating_point() or weight.itemsize < 2:
            raise UnsupportedModelError(
                f"{self.name} cannot be merged into quantised weights ({name}); use the "
                "model with float weights"
            )
        self.refuse_shape(name, (*weight.shape[::-1],) if transposed else (*weight.shape,))
        self.refuse_own_weight(name, weight)
        a, b = self.factors(name)
        product = b @ a
        delta: torch.Tensor = product.T if transposed else product
        merged: torch.Tensor = weight.float() + delta.to(weight.device)
        return merged.to(weight.dtype)

    def factors(self, name: str) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return what the weight `name` gets: A float32[r, in], and scale * B float32[out, r].

        Raises `ModelLoadError` if a number is not finite: it would spread to other requests.
        """
        from safetensors import safe_open

        layer, path = self.layers[name], self.folder / WEIGHTS_FILE
        with reading(path), safe_open(path, framework="pt") as file:
            a, b = file.get_tensor(layer.a).float(), file.get_tensor(layer.b).float()
        b.mul_(layer.scale)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ModelLoadError(f"{path}: numbers for {name} are not finite; download it again")
        return a, b

    def refuse_own_weight(self, name: str, weight: "torch.Tensor") -> None:
        """Raise `UnsupportedModelError` if the file brings another weight `name` than the model's.

        PEFT writes a copy of it for a head, which may have been changed, for example resized.
        """
        import torch
        from safetensors import safe_open

        layer, path = self.layers[name], self.folder / WEIGHTS_FILE
        if not layer.copy:
            return
        with reading(path), safe_open(path, framework="pt") as file:
            own = file.get_tensor(layer.copy)
        dtype = min(own.dtype, weight.dtype, key=lambda dtype: dtype.itemsize)
        if not torch.equal(own.to(dtype), weight.to("cpu", dtype)):
            raise UnsupportedModelError(
                f"the adapter {self.name} brings another {name} than the model has; merge it into "
                "its model with the library that made it, and serve the result"
            )

    def refuse_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise `ModelLoadError` if the weight `name` of `shape` [out, in] cannot take it."""
        changed = self.layers[name].shape
        if changed != shape:
            raise ModelLoadError(
                f"{self.name} changes {name} of {' x '.join(map(str, changed))}, which "
                f"is {' x '.join(map(str, shape))} here: it belongs to "
                f"{self.base or 'another model'}"
            )

    def refuse_missing(self, model: str, missing: set[str]) -> None:
        """Raise `ModelLoadError` if there are weights that it changes and the model lacks."""
        if missing:
            raise ModelLoadError(
                f"{model} has no weights {', '.join(sorted(missing)[:3])} of their own, which the "
                f"adapter {self.name} changes: it belongs to {self.base or 'another model'}"
            )


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter, alone or beside a model."""
    return (folder / CONFIG_FILE).is_file()


def refuse_adapter_alone(folder: Path) -> None:
    """Raise `ModelLoadError` for the folder of an adapter without a model's weights."""
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    has_model = any(not path.name.startswith("adapter_model") for path in weights)
    if not is_adapter(folder) or (has_model and (folder / "config.json").is_file()):
        return
    base = (read_json(folder / CONFIG_FILE) or {}).get("base_model_name_or_path") or "MODEL"
    raise ModelLoadError(
        f"{folder} is a LoRA adapter for {base}, not a model; serve the two together: "
        f"stonechat serve {base} --adapter {folder}"
    )


def read_adapter(folder: Path, name: str) -> Adapter:
    """Read the files of an adapter, which is called `name`.

    Raises `ModelLoadError` for files that are missing or not valid, and its subclass
    `UnsupportedModelError` for an adapter that does more than to add to weights.
    """
    config = read_json(folder / CONFIG_FILE)
    if config is None:
        raise ModelLoadError(f"{folder} has no {CONFIG_FILE}; name the folder of a LoRA adapter")
    _refuse_variants(name, config)
    path = folder / WEIGHTS_FILE
    if not path.is_file() and (folder / PICKLED_FILE).is_file():
        raise ModelLoadError(
            f"{folder} has its weights only as {PICKLED_FILE}, which can run code when read; use "
            f"an adapter with {WEIGHTS_FILE}"
        )
    with reading(path):
        tensors = layer_tensors(path)
    with reading(folder / CONFIG_FILE):
        layers = dict(lora_layers(path, tensors, config))
    return Adapter(name, folder, str(config.get("base_model_name_or_path") or ""), layers)


def _refuse_variants(name: str, config: Mapping[str, Any]) -> None:
    problems = sorted(key for key, value in config.items() if value and key not in PLAIN_KEYS)
    if config.get("bias", "none") != "none":
        problems.append(f"bias {config['bias']}")
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        problems.append(f"init_lora_weights {config['init_lora_weights']}")
    if config.get("peft_type") != "LORA":
        problems.insert(0, f"peft_type {config.get('peft_type')}")
    if problems:
        raise UnsupportedModelError(
            f"the adapter {name} cannot be served, because of {', '.join(problems)}; merge it into "
            "its model with the library that made it, and serve the result"
        )
