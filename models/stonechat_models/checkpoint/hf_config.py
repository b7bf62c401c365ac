"""A model's config.json, read and checked once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import read_json, reading

T = TypeVar("T")
MAX_SIZE = (1 << 31) - 1
"""The largest size or count of a model: what the compiled code can hold."""
MAX_FLOAT32 = (2 - 2**-23) * 2.0**127
"""The largest number that weights and constants can be."""
MAX_LAYERS, MAX_EXPERTS = 1000, 1 << 14
MAX_STEP = 1 << 14
"""The longest piece in which a state-space model computes a text. Shorter ones are padded to it."""
STEP_KEYS = ("chunk_size", "mamba_chunk_size")
MAX_SHOWN = 60
QUANTIZATION_FILES = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
"""Files that say how the weights are quantised if config.json does not, and their method."""
TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "num_key_value_heads", "head_dim"),
)
TEXT_DEFAULTS = {
    "gemma3_text": (262208, 2304, 9216, 26, 8, 131072, 4, 256),
    "qwen2": (151936, 4096, 22016, 32, 32, 32768, 32),
    "llama": (32000, 4096, 11008, 32, 32, 2048),
    "mistral": (32000, 4096, 14336, 32, 32, 131072, 8),
}
"""What a `text_config` of these types leaves out has the defaults of transformers' classes."""
THINKER = "thinker_config"
"""Where the config of an Omni model has that of the part that writes text."""
WHOLE_KEYS = ("architectures", "dtype", "torch_dtype", "quantization_config")
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
            converted = msgspec.convert(default if value is None else value, kind)
        except msgspec.ValidationError as error:
            raise self.error(key, f"is {shown(value)}: {error}") from error
        if value is not None and isinstance(converted, int | float):
            if not -math.inf < converted < math.inf:
                raise self.error(key, f"is {converted}, which is not a finite number")
            limit = MAX_SIZE if isinstance(converted, int) else MAX_FLOAT32
            if abs(converted) > limit:
                raise self.error(key, f"is {shown(value)}, which is too large")
        return converted

    def positive(self, key: str, kind: type[T], default: T | None = None) -> T:
        """As `read`. Raises `ModelLoadError` also for a number that is not above 0."""
        number, value = self.read(key, kind, default), self.values.get(key)
        if value is not None and value <= 0:
            raise self.error(key, f"is {value}, which is not a number above 0")
        return number

    def size(self, key: str, default: int = 0, limit: int = MAX_SIZE) -> int:
        """Return an integer above 0 and not above `limit`, or `default`."""
        number = self.positive(key, int, default)
        if number > limit:
            raise self.error(key, f"is {number}, which is too large")
        return number

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


def shown(value: object) -> str:
    """Return a value of a file as an error message shows it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def parse_config(raw: Mapping[str, Any], source: str) -> HFConfig:
    """Check the content of a config.json. `source` names the file.

    If the model has several parts, the keys of its `text_config` count. Raises `ModelLoadError`
    with the file and the key for a value that cannot be right.
    """
    whole = JsonObject(source, raw)
    text = {k: v for k, v in whole.section("text_config").values.items() if v is not None}
    defaults = dict(zip(TEXT_SIZES, TEXT_DEFAULTS.get(str(text.get("model_type")), ())))
    keys = JsonObject(source, {**defaults, **raw, **text})
    num_layers = keys.size("num_hidden_layers", limit=MAX_LAYERS)
    num_heads = keys.size("num_attention_heads")
    num_experts = next((n for name in EXPERT_COUNTS if (n := keys.read(name, int, 0)) > 0), 1)
    if num_experts > MAX_EXPERTS:
        raise ModelLoadError(f"{source}: {num_experts} experts are too many; download it again")
    num_used = keys.read("num_experts_per_tok", int, num_experts)
    if num_experts > 1 and not 1 <= num_used <= num_experts:
        raise keys.error("num_experts_per_tok", f"is {num_used} of {num_experts} experts")
    layer_types = tuple(keys.read("layer_types", list[str], []))
    if layer_types and len(layer_types) < num_layers:
        raise keys.error("layer_types", f"has {len(layer_types)} items for {num_layers} layers")
    for name in STEP_KEYS:
        step = keys.values.get(name)
        if isinstance(step, int | float) and step > MAX_STEP:
            raise keys.error(name, f"is {step}, which is too large")
    # With latent attention, `head_dim` is the size of the rotary part, which may be none.
    has_latent_heads = keys.read("kv_lora_rank", int, 0) > 0
    rope = keys.section("rope_parameters")
    rope = rope if rope.values else keys.section("rope_scaling")
    for section in (keys, rope, *rope.sections().values()):
        _check_rotary_share(section)
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
        head_dim=0 if has_latent_heads else keys.size("head_dim"),
        vocab_size=keys.size("vocab_size"),
        max_position_embeddings=keys.size("max_position_embeddings", keys.size("n_positions")),
        layer_types=layer_types,
        rope=rope,
        expert_share=min(1.0, num_used / num_experts),
    )


def _check_rotary_share(section: JsonObject) -> None:
    """Refuse a rotary embedding of more dimensions than a head has, or of none."""
    key = "partial_rotary_factor"
    if section.positive(key, float, 1.0) > 1.0:
        raise section.error(key, f"is {section.values[key]}, which is more than a whole head")


def read_config(path: Path) -> HFConfig:
    """Read and check a config.json. Raises `ModelLoadError` if it is absent or not right."""
    raw = read_json(path)
    if raw is None:
        raise ModelLoadError(
            f"{path.parent} has no config.json; name a folder with a Hugging Face model"
        )
    with reading(path):
        raw = thinker_of(_with_floats(raw))
    text = raw.get("text_config")
    if "quantization_config" not in {**raw, **(text if isinstance(text, dict) else {})}:
        raw |= _quantization_beside(path.parent)
    return parse_config(raw, str(path))


def thinker_of(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the part of a model that writes text, if another part speaks it."""
    thinker = raw.get(THINKER)
    if not isinstance(thinker, dict):
        return raw
    whole = {key: raw[key] for key in WHOLE_KEYS if raw.get(key) is not None}
    return {"model_type": f"{raw.get('model_type', '')}_thinker", **thinker, **whole}


def _quantization_beside(folder: Path) -> dict[str, Any]:
    """Return the `quantization_config` that some writers keep in a file of its own."""
    for name, method in QUANTIZATION_FILES.items():
        content = read_json(folder / name)
        if content is not None:
            section = content.get("quantization", content)
            values = section if isinstance(section, dict) else {}
            return {"quantization_config": {"quant_method": method} | values}
    return {}


def _with_floats(value: Any) -> Any:
    """Replace what transformers writes for numbers that JSON cannot hold, such as infinity."""
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {key: _with_floats(item) for key, item in value.items()}
