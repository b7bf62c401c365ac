"""The sampling parameters that a model's makers recommend, from its generation_config.json."""

from pathlib import Path

from stonechat_models.checkpoint.hf_config import MAX_SIZE, JsonObject
from stonechat_models.model_file import read_json
from stonechat_models.model_info import SamplingDefaults

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "top_k": (-1, MAX_SIZE),
}


def read_sampling_defaults(folder: Path) -> tuple[SamplingDefaults, tuple[str, ...]]:
    """Return the recommended parameters, and notes on those that are ignored.

    A parameter is None if the file does not name it, or names a value that no request may have. As
    in vLLM, `do_sample` does not count. Raises `ModelLoadError` with the file and the key for a
    value of another type.
    """
    path = folder / "generation_config.json"
    content = JsonObject(str(path), read_json(path) or {})
    values: dict[str, float] = {}
    notes: list[str] = []
    for name in RANGES:
        if content.is_null(name) or name not in content.values:
            continue
        value = content.read(name, float)
        if is_allowed(name, value):
            values[name] = value
        else:
            low, high = RANGES[name]
            notes.append(
                f"{path.name} recommends the {name} {value:g}, which is ignored: it is not between "
                f"{low:g} and {high:g}"
            )
    number = values.pop("top_k", None)
    if number is not None and not number.is_integer():
        raise content.error("top_k", f"is {number}, which is not an integer")
    top_k = None if number is None else max(0, int(number))
    return SamplingDefaults(**values, top_k=top_k), tuple(notes)


def is_allowed(name: str, value: float) -> bool:
    """Whether a request may have this value of a parameter."""
    low, high = RANGES[name]
    return low <= value <= high
