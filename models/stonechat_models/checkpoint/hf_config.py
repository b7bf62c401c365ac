"""A model's config.json, read and checked once."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stonechat_models.errors import ModelLoadError

T = TypeVar("T")
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object in config.json; `source` names the file, and the object in it."""

    source: str
    values: Mapping[str, Any]

    def read(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return the value of `key`, or `default` if it is absent or null.

        Raises `ModelLoadError` with the file and the key for a value of another type, or if there
        is neither a value nor a default.
        """
        value = self.values.get(key)
        try:
            return msgspec.convert(default if value is None else value, kind)
        except msgspec.ValidationError as error:
            raise self.error(key, f"is {value!r}: {error}") from error

    def positive(self, key: str, kind: type[T], default: T | None = None) -> T:
        """As `read`. Raises `ModelLoadError` also for a number that is not above 0."""
        number, value = self.read(key, kind, default), self.values.get(key)
        if value is not None and not 0 < value < math.inf:
            raise self.error(key, f"is {value}, which is not a number above 0")
        return number

    def size(self, key: str, default: int = 0) -> int:
        """Return an integer above 0, or `default`."""
        return self.positive(key, int, default)

    def is_null(self, key: str) -> bool:
        """True if the key is there, and its value is null."""
        return self.values.get(key, key) is None

    def section(self, key: str) -> "JsonObject":
        """Return the object under `key`, which is empty if there is none."""
        return JsonObject(f"{self.source}: {key}", self.read(key, dict[str, Any], {}))

    def sections(self) -> dict[str, "JsonObject"]:
        """Return the objects among the values."""
        return {k: self.section(k) for k, v in self.values.items() if isinstance(v, Mapping)}

    def error(self, key: str, problem: str) -> ModelLoadError:
        """Return the error for a key; `problem` begins with a verb."""
        return ModelLoadError(f"{self.source}: {key} {problem}; download the file again")


@dataclass(frozen=True, slots=True, kw_only=True)
class HFConfig:
    """What config.json says of the language model. 0 or an empty text: it does not say."""

    raw: Mapping[str, Any]
    """The content of the file."""
    keys: JsonObject
    """The keys of the language model, for those that only one family or module needs."""
    model_type: str
    architecture: str
    dtype: str
    """The name of the dtype of the weights."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    """`num_heads` if the file does not say."""
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    layer_types: tuple[str, ...]
    rope: JsonObject
    """Parameters of the rotary embedding, or an object of them for each type of layer."""
    expert_share: float
    """The part of the experts that one token uses; 1.0 for a model without experts."""


def parse_config(raw: Mapping[str, Any], source: str) -> HFConfig:
    """Check the content of a config.json. `source` names the file.

    If the model has several parts, the keys of its `text_config` count. Raises `ModelLoadError`
    with the file and the key for a value that cannot be right.
    """
    whole = JsonObject(source, raw)
    text = {k: v for k, v in whole.section("text_config").values.items() if v is not None}
    keys = JsonObject(source, {**raw, **text})
    num_layers, num_heads = keys.size("num_hidden_layers"), keys.size("num_attention_heads")
    num_experts = next((n for name in EXPERT_COUNTS if (n := keys.read(name, int, 0)) > 0), 1)
    layer_types = tuple(keys.read("layer_types", list[str], []))
    if layer_types and len(layer_types) < num_layers:
        raise keys.error("layer_types", f"has {len(layer_types)} items for {num_layers} layers")
    rope = keys.section("rope_parameters")
    return HFConfig(
        raw=raw,
        keys=keys,
        model_type=whole.read("model_type", str, ""),
        architecture=next(iter(whole.read("architectures", list[str], [])), "?"),
        dtype=keys.read("dtype", str, keys.read("torch_dtype", str, "")).removeprefix("torch."),
        num_layers=num_layers,
        hidden_size=keys.size("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=keys.size("num_key_value_heads", num_heads),
        head_dim=keys.size("head_dim"),
        vocab_size=keys.size("vocab_size"),
        max_position_embeddings=keys.size("max_position_embeddings", keys.size("n_positions")),
        layer_types=layer_types,
        rope=rope if rope.values else keys.section("rope_scaling"),
        expert_share=min(1.0, keys.read("num_experts_per_tok", int, num_experts) / num_experts),
    )


def read_config(path: Path) -> HFConfig:
    """Read and check a config.json. Raises `ModelLoadError` if it is absent or not right."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{path.parent} has no config.json; name a folder with a Hugging Face model"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}; download it again: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{path} is not a JSON object; download it again")
    return parse_config(raw, str(path))
