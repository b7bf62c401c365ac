"""Fetches models from the Hugging Face hub, or finds them in its local cache when offline."""

from collections.abc import Sequence
from pathlib import Path

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.hub.errors import is_reachable, not_found, require_network
from stonechat_models.checkpoint.hub.names import choose_gguf, gguf_models, split_parts
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading

CONFIG_PATTERNS = [
    *("*.json", "*.jinja", "tokenizer.model", "spiece.model", "*.tiktoken", "vocab.*"),
    "merges.txt",
]
FOLDER_PATTERNS = [
    "additional_chat_templates/*.jinja",
    *("[0-9]_*/*.json", "[0-9]_*/*.safetensors", "[0-9]_*/vocab.txt"),
]
"""Chat templates, and the modules of embedding models, such as `1_Pooling`."""
FOLDER_IGNORED_PATTERNS = ["*/*/*"]
CODE_PATTERNS = ["*.py"]
# Other copies of the same weights, and everything in subfolders (onnx, original, …).
IGNORED_PATTERNS = ["*/*", "consolidated*", "*.index.fp16.json"]
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
MAX_SHOWN = 20
CACHED = "models--"
"""How the folders of models begin in the hub's local cache: `models--owner--name`."""


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
    pickled = ["[0-9]_*/pytorch_model.bin"] if allow_pickle else []
    _snapshot(model, revision, [*FOLDER_PATTERNS, *pickled], ignored=FOLDER_IGNORED_PATTERNS)
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _snapshot(
            model, revision, [*CONFIG_PATTERNS, *CODE_PATTERNS, "pytorch_model*.bin"]
        )
    return folder


def fetch_gguf(repository: str, file: str, revision: str | None, progress: Progress) -> Path:
    """Fetch a GGUF file of the hub, all its parts if it is split. Return its local path.

    Raises `ModelLoadError` when the file does not exist, or is neither cached nor reachable.
    """
    progress(f"looking for {file} of {repository} on the Hugging Face hub and in its local cache")
    try:
        return _download(repository, file, revision, only_cached=not is_reachable())
    except Exception as error:
        raise not_found(f"{repository}/{file}", error) from error


def cached_gguf(repository: str, file: str, revision: str | None) -> Path | None:
    """Return the local path of a GGUF file of the hub; None if it is not in the cache."""
    try:
        return _download(repository, file, revision, only_cached=True)
    except Exception:  # the library raises many types; all mean that it is not cached
        return None


def _download(repository: str, file: str, revision: str | None, *, only_cached: bool) -> Path:
    from huggingface_hub import hf_hub_download

    paths = [
        hf_hub_download(repository, part, revision=revision, local_files_only=only_cached)
        for part in split_parts(file)
    ]
    return Path(paths[0])


def find_gguf(repository: str, quantisation: str, revision: str | None) -> str:
    """Return which GGUF file of a repository has the quantisation.

    Raises `ModelLoadError`, with the files that there are, if none has it.
    """
    files = list_files(repository, revision)
    file = choose_gguf(files, quantisation)
    if file is not None:
        return file
    models = gguf_models(files)
    if not models:
        raise ModelLoadError(
            f"{repository} has no GGUF files on the Hugging Face hub; name a repository with some"
        )
    more = f" and {len(models) - MAX_SHOWN} more" if len(models) > MAX_SHOWN else ""
    raise ModelLoadError(
        f"{repository} has no GGUF file of {quantisation} on the Hugging Face hub; it has "
        f"{', '.join(models[:MAX_SHOWN])}{more}"
    )


def list_files(repository: str, revision: str | None) -> list[str]:
    """Return the paths of a repository's files. If the hub is not reachable: of the cached ones.

    Raises `ModelLoadError` if there is no such repository.
    """
    from huggingface_hub import HfApi

    try:
        require_network()
        return list(HfApi().list_repo_files(repository, revision=revision))
    except Exception as error:  # the library raises many types; the cache may still have it
        folder = _cached_folder(repository, revision)
        if folder is None:
            raise not_found(repository, error) from error
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder of a model id in the hub's local cache; None if it has no weights there."""
    folder = _cached_folder(model, revision)
    return folder if folder is not None and has_weights(folder) else None


def main_snapshot(folder: Path) -> Path:
    """Return the folder with the files if `folder` is that of a model in a hub's local cache."""
    reference = folder / "refs" / "main"
    if not folder.name.startswith(CACHED) or not reference.is_file():
        return folder
    with reading(reference):
        snapshot = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
    return snapshot if snapshot.is_dir() else folder


def cached_name(folder: Path) -> str | None:
    """Return the name on the hub of a snapshot in a local cache; None if it is none."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith(CACHED):
        return None
    return repository.removeprefix(CACHED).replace("--", "/", 1)


def has_weights(folder: Path) -> bool:
    """Whether there are weights in files other than GGUF."""
    return any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS)


def _cached_folder(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:  # the library raises many types; all mean that it is not cached
        return None


def _snapshot(
    model: str,
    revision: str | None,
    patterns: list[str],
    ignored: Sequence[str] = IGNORED_PATTERNS,
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=[*ignored],
            local_files_only=not is_reachable(),
        )
    except Exception as error:
        raise not_found(model, error) from error
    return Path(folder)
