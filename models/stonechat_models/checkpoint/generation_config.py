"""The sampling parameters that a model's makers recommend, from its generation_config.json."""

from pathlib import Path

from stonechat_models.checkpoint.hf_config import JsonObject
from stonechat_models.model_file import read_json
from stonechat_models.types import SamplingDefaults

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
}


def read_sampling_defaults(folder: Path) -> SamplingDefaults:
    """Return the recommended parameters; those that the file does not name are None.

    As in vLLM, `do_sample` does not count. Raises `ModelLoadError` with the file and the key for a
    value that no request may have.
    """
    path = folder / "generation_config.json"
    content = JsonObject(str(path), read_json(path) or {})
    named = {name for name, value in content.values.items() if value is not None}
    values = {name: content.read(name, float) for name in RANGES if name in named}
    for name, value in values.items():
        low, high = RANGES[name]
        if not low <= value <= high:
            raise content.error(name, f"is {value}, which is not between {low} and {high}")
    top_k = max(0, content.read("top_k", int)) if "top_k" in named else None
    return SamplingDefaults(**values, top_k=top_k)
