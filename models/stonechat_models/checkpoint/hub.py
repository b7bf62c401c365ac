"""Fetches models from the Hugging Face hub, or finds them in its local cache when offline."""

from pathlib import Path

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.errors import ModelLoadError

CONFIG_PATTERNS = ["*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "vocab.*", "merges.txt"]
CODE_PATTERNS = ["*.py"]
# Other copies of the same weights, and everything in subfolders (onnx, original, …).
IGNORED_PATTERNS = ["*/*", "consolidated*", "*.index.fp16.json"]


def fetch_snapshot(
    model: str, revision: str | None, allow_pickle: bool, progress: Progress
) -> Path:
    """Return the folder of a model id such as `owner/name`: only configuration, code and weights.

    It fetches safetensors. Pickled weights are fetched only if `allow_pickle` is set and the model
    has no safetensors. Raises `ModelLoadError` when the model does not exist, or is neither cached
    nor reachable.
    """
    progress(f"looking for {model} on the Hugging Face hub and in its local cache")
    folder = _snapshot(model, revision, [*CONFIG_PATTERNS, *CODE_PATTERNS, "*.safetensors"])
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _snapshot(
            model, revision, [*CONFIG_PATTERNS, *CODE_PATTERNS, "pytorch_model*.bin"]
        )
    return folder


def fetch_gguf(
    model: str, revision: str | None, progress: Progress, *, only_cached: bool = False
) -> Path:
    """Fetch `owner/name/path/to/file.gguf` from the hub and return its local path.

    `only_cached`: download nothing. Raises `ModelLoadError` when `model` is not such a path, or is
    neither cached nor reachable.
    """
    from huggingface_hub import hf_hub_download

    parts = model.split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ModelLoadError(
            "there is no local file of this name, and it is not a hub path owner/name/file.gguf: "
            f"{model}"
        )
    repository, name = "/".join(parts[:2]), parts[2]
    progress(f"looking for {name} of {repository} on the Hugging Face hub and in its local cache")
    try:
        path = hf_hub_download(repository, name, revision=revision, local_files_only=only_cached)
    except Exception as error:
        if only_cached:
            raise ModelLoadError(
                f"{model} is not on this machine; `stonechat models pull {model}` downloads it"
            ) from error
        raise not_found(model, error) from error
    return Path(path)


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder of a model id in the hub's local cache; None if it has no weights there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:  # the library raises many types; all mean that it is not cached
        return None
    patterns = ("*.safetensors", "pytorch_model*.bin")
    return folder if any(any(folder.glob(pattern)) for pattern in patterns) else None


def _snapshot(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=IGNORED_PATTERNS
        )
    except Exception as error:
        raise not_found(model, error) from error
    return Path(folder)


def not_found(model: str, error: Exception) -> ModelLoadError:
    """Return the error for a model that the hub did not return, and why."""
    # The library raises many types (validation, HTTP, offline, its own); all mean the same here.
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelLoadError(
        f"{model} is not a local folder or .gguf file, and the Hugging Face hub did not return it "
        f"(check the name, your access and the network): {reason}"
    )
