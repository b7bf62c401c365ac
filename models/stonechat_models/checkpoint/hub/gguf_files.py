"""Reads the header of a GGUF file of the Hugging Face hub, without downloading its weights."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import IO

from stonechat_models.checkpoint.cache import Progress, cache_root, fill_once
from stonechat_models.checkpoint.gguf.reader import GgufFile, read_part
from stonechat_models.checkpoint.gguf.rope import CONFIG_TENSORS
from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.hub.errors import not_found, require_network
from stonechat_models.checkpoint.hub.names import split_parts
from stonechat_models.errors import ModelLoadError

FIRST_BYTES = 16 << 20
"""Most headers are shorter: they hold the vocabulary."""


def cached_or_header(repository: str, file: str, revision: str | None, progress: Progress) -> Path:
    """Return a GGUF file from the hub's local cache, or one with its header if it is not there."""
    cached = hub.cached_gguf(repository, file, revision)
    return cached or gguf_header(repository, file, revision, progress)


def gguf_header(repository: str, file: str, revision: str | None, progress: Progress) -> Path:
    """Return a file with the header of a GGUF file and a hole in place of its weights.

    It has the size of the original, but takes little room. It lies in the cache. Of a split file,
    all parts are there. Raises `ModelLoadError` when the hub does not return it.
    """
    from huggingface_hub import HfFileSystem

    progress(f"reading the header of {file} of {repository} on the Hugging Face hub")
    parts = split_parts(file)
    try:
        require_network()
        files = HfFileSystem()
        paths = [f"{repository}/{part}" for part in parts]
        versions = [str(files.info(path, revision=revision)) for path in paths]
        key = hashlib.sha256("\n".join(versions).encode()).hexdigest()[:24]

        def build(target: Path) -> None:
            for path, part in zip(paths, parts, strict=True):
                with files.open(path, "rb", revision=revision) as source:
                    _copy_header(source, int(source.size), target / Path(part).name)

        folder = fill_once(cache_root() / "gguf-headers" / key, progress, build)
    except ModelLoadError:
        raise
    except Exception as error:  # the library raises many types
        raise not_found(f"{repository}/{file}", error) from error
    return folder / Path(file).name


def _copy_header(source: IO[bytes], size: int, path: Path) -> None:
    """Copy the header, and the tensors that the configuration is read from."""
    with path.open("wb") as target:
        gguf = _read_header(source, size, target, path)
        for name in CONFIG_TENSORS:
            if name in gguf.tensors:
                tensor = gguf.tensors[name]
                source.seek(tensor.start)
                target.seek(tensor.start)
                target.write(source.read(tensor.data.nbytes))


def _read_header(source: IO[bytes], size: int, target: IO[bytes], path: Path) -> GgufFile:
    end = FIRST_BYTES
    while end < size:
        target.write(source.read(end - target.tell()))
        target.flush()
        target.truncate(size)
        with suppress(ModelLoadError):  # the header goes on where the hole begins
            gguf = read_part(path)
            if gguf.data_start <= end:
                return gguf
        end *= 4
    target.write(source.read(size - target.tell()))
    target.flush()
    return read_part(path)
