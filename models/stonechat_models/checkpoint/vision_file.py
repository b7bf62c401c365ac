"""Finds the file with the vision part of a GGUF model: named by the settings, or beside it."""

from pathlib import Path

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.gguf.mmproj import (
    has_name_of,
    mmprojs_beside,
    ranked_mmprojs,
    read_mmproj,
    whole_of,
    why_blind,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile, read_gguf
from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.hub.gguf_files import cached_or_header
from stonechat_models.checkpoint.hub.names import parse_hub_name
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading

NONE = "none"
"""The value of the setting with which no vision part is looked for."""
LEFT_OUT = "the settings leave out its vision part (--mmproj none)"


def find_vision_file(
    gguf: GgufFile,
    fetched: Path | None,
    config: EngineConfig,
    progress: Progress,
    *,
    only_headers: bool = False,
) -> tuple[Path | None, str]:
    """Return the file of a model's vision part; or None, and why the model takes no images.

    `fetched` is that of its repository on the hub. The reason is empty for a model of text alone.
    `only_headers`: of a file on the hub that is not in the local cache, only the header is fetched.
    Raises `ModelLoadError` if the settings name a file that is not the model's.
    """
    if config.mmproj == NONE:
        return None, LEFT_OUT if why_blind(gguf) else ""
    if config.mmproj is not None:
        named = _named(config.mmproj, progress, only_headers)
        whole_of(read_mmproj(named), gguf)
        return named, ""
    reason = why_blind(gguf)
    try:
        path = fetched or _beside(gguf, bool(reason))
        if path is None:
            return None, reason
        whole_of(read_mmproj(path), gguf)
    except ModelLoadError as error:
        return None, str(error)
    if config.adapter is not None or config.lora:
        return None, f"its adapter is for the text (--mmproj {path} adds the vision part)"
    return path, ""


def _beside(gguf: GgufFile, sees: bool) -> Path | None:
    """Return the vision part beside a model.

    `sees`: models of its architecture see. Others must have the name of the part. Raises
    `ModelLoadError` with the reason if a model that sees has none of those beside it.
    """
    problem: ModelLoadError | None = None
    for path in mmprojs_beside(gguf.path):
        try:
            whole_of(read_mmproj(path), gguf)
        except ModelLoadError as error:  # it may be that of another model
            problem = problem or error
            continue
        if sees or has_name_of(path, gguf.path):
            return path
    if problem is not None and sees:
        raise problem
    return None


def _named(name: str, progress: Progress, only_headers: bool) -> Path:
    path = Path(name).expanduser()
    with reading(name):
        if path.is_file():
            return path.absolute()
    hub_name = parse_hub_name(name)
    if hub_name is None or hub_name.file is None or "/" not in name:
        raise ModelLoadError(
            f"there is no file {name} (--mmproj), and it is not the name of one on the Hugging "
            "Face hub, which is owner/name/file.gguf"
        )
    fetch = cached_or_header if only_headers else hub.fetch_gguf
    return fetch(hub_name.repository, hub_name.file, hub_name.revision, progress)


def refuse_vision_file(name: str, config: EngineConfig) -> None:
    """Raise `ModelLoadError` if the settings name a vision part. The model is no GGUF file."""
    if config.mmproj not in (None, NONE):
        raise ModelLoadError(
            f"{name} is no GGUF file: its folder has its vision part (leave out --mmproj)"
        )


def fetch_vision_file(
    repository: str, file: str, path: Path, revision: str | None, progress: Progress
) -> Path | None:
    """Fetch the vision part of a GGUF file of the hub from its repository; None if it has none.

    `path` is the local path of the model's `file`. Of a part that does not go with it, only the
    header is fetched.
    """
    name, found = vision_header(repository, file, revision, progress)
    if name is None or found is None:
        return None
    try:
        whole_of(read_mmproj(found), read_gguf(path, skip_texts=True))
    except ModelLoadError:
        return found  # whoever reads it says why it is not used
    return hub.fetch_gguf(repository, name, revision, progress)


def vision_header(
    repository: str, file: str, revision: str | None, progress: Progress
) -> tuple[str | None, Path | None]:
    """Return the name of the vision part of a GGUF file of the hub, and a file with its header.

    None: the repository has none, or it is neither on this machine nor reachable.
    """
    try:
        names = ranked_mmprojs(hub.list_files(repository, revision), file)
        if not names:
            return None, None
        name = names[0]
        return name, cached_or_header(repository, name, revision, progress)
    except ModelLoadError:
        return None, None
