"""Reads names of the Hugging Face hub in the forms that people paste, and chooses GGUF files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

DEFAULT_QUANTISATIONS = ("Q4_K_M", "Q8_0")
"""What is served of a repository of GGUF files if the name says nothing: llama.cpp's order."""
OTHER_FILES = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""Parts of the names of GGUF files that are no models of their own, as llama.cpp knows them."""
_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/|hf://", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, and perhaps which of its GGUF files: by path, or by quantisation."""

    repository: str
    file: str | None = None
    quantisation: str | None = None
    """Part of the file's name, in any case of letters."""
    revision: str | None = None
    """The branch, tag or commit that a URL names."""


def parse_hub_name(name: str) -> HubName | None:
    """Read `owner/name`, `owner/name:Q4_K_M`, `owner/name/file.gguf`, or a URL of one of them.

    Returns None for a text that has none of these forms.
    """
    host = _HOST.match(name)
    text = re.split("[?#]", name[host.end() :])[0] if host else name
    path, colon, quantisation = text.rstrip("/").partition(":")
    if {".", ".."}.intersection(unquote(path).split("/")):
        return None
    owner, *rest = map(unquote, path.split("/")) if host else path.split("/")
    repository, inside = "/".join([owner, *rest[:1]]), rest[1:]
    if _REPOSITORY.fullmatch(repository) is None or (colon and (inside or not quantisation)):
        return None
    revision = None
    if host and len(inside) > 1 and inside[0] in ("blob", "resolve", "raw", "tree"):
        kind, revision, *inside = inside
        if inside and kind == "tree":
            return HubName(repository, None, inside[-1], revision)
        if inside and not inside[-1].lower().endswith(".gguf"):
            inside = []  # a page of another file stands for the repository
    file = "/".join(inside)
    if file and not (all(file.split("/")) and file.lower().endswith(".gguf")):
        return None
    if quantisation.lower() == "latest":
        quantisation = ""
    if quantisation and not rest:
        return None
    return HubName(repository, file or None, quantisation or None, revision)


def choose_gguf(files: Sequence[str], quantisation: str | None) -> str | None:
    """Return which of the `files` of a repository is the GGUF model to serve. None: none of them.

    Of a split file it is the first part. Several files of one quantisation: the one with the
    shortest path, which is the one without another method's mark.
    """
    models = gguf_models(files)
    for wanted in (quantisation,) if quantisation else DEFAULT_QUANTISATIONS:
        found = [file for file in models if _is_named(file, wanted)]
        if found:
            return min(found, key=len)
    return models[0] if models and quantisation is None else None


def gguf_models(files: Sequence[str]) -> list[str]:
    """Return the GGUF models among the files of a repository. Split ones count by first parts."""
    return sorted(
        file
        for file in files
        if file.lower().endswith(".gguf")
        and not any(part in file.rpartition("/")[2] for part in OTHER_FILES)
        and ((part := _PART.search(file)) is None or int(part[1]) == 1)
    )


def split_parts(file: str) -> list[str]:
    """Return the paths of all parts of the GGUF file, the first one first."""
    part = _PART.search(file)
    if part is None:
        return [file]
    stem, count = file[: part.start()], part[2]
    return [f"{stem}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def _is_named(file: str, wanted: str) -> bool:
    """Whether the quantisation stands in the path, as a word of its own; or is the file's name."""
    name = file.lower().rpartition("/")[2]
    word = rf"(?:^|[-._/]){re.escape(wanted.lower())}(?:[-./]|$)"
    return name == wanted.lower() or re.search(word, file.lower()) is not None
