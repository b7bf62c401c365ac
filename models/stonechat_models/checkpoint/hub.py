"""Fetches models from the Hugging Face hub, or finds them in its local cache when offline."""

from pathlib import Path

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.errors import ModelLoadError

CONFIG_PATTERNS = ["*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "vocab.*", "merges.txt"]
CODE_PATTERNS = ["*.py"]
# Other forms of the same weights, and what lies in subfolders (onnx, original, …).
IGNORED_PATTERNS = ["*/*", "consolidated*", "*.index.fp16.json"]


def fetch_snapshot(
    model: str, revision: str | None, allow_pickle: bool, progress: Progress
) -> Path:
    """The folder of a model id such as `owner/name`: its configuration and weights, no more.

    Safetensors are taken; pickled weights only if `allow_pickle` and there is nothing else.
    Raises `ModelLoadError` when there is no such model, or it is neither cached nor reachable.
    """
    progress(f"looking for {model} on the Hugging Face hub and in its local cache")
    folder = _snapshot(model, revision, [*CONFIG_PATTERNS, *CODE_PATTERNS, "*.safetensors"])
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _snapshot(
            model, revision, [*CONFIG_PATTERNS, *CODE_PATTERNS, "pytorch_model*.bin"]
        )
    return folder


def fetch_gguf(model: str, revision: str | None, progress: Progress) -> Path:
    """The local path of `owner/name/path/to/file.gguf` on the hub.

    Raises `ModelLoadError` when it is not such a path, or is neither cached nor reachable.
    """
    from huggingface_hub import hf_hub_download

    parts = model.split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ModelLoadError(f"there is no file {model}")
    repository, name = "/".join(parts[:2]), parts[2]
    progress(f"looking for {name} of {repository} on the Hugging Face hub and in its local cache")
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:
        raise _not_found(model, error) from error


def _snapshot(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=IGNORED_PATTERNS
        )
    except Exception as error:
        raise _not_found(model, error) from error
    return Path(folder)


def _not_found(model: str, error: Exception) -> ModelLoadError:
    # The library raises many kinds (validation, HTTP, offline, its own); to us they are one.
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelLoadError(
        f"{model} is no local folder or .gguf file, "
        f"and the Hugging Face hub did not give it: {reason}"
    )
