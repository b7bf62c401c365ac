"""Finds the files with a model's weights in a folder."""

import re
from pathlib import Path

from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import read_json, reading

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
_SHARD = re.compile(r"(.*-)\d{5}(-of-(\d{5})\.\w+)")
"""The name of a file of a set: how it begins, its number, and how many there are."""
MAX_SHARDS = 10_000
"""Of a set with more files, only so many are looked for."""
OTHER_WEIGHTS = ("consolidated", "adapter_model")
"""How the names of files begin that are not the model's own: a second copy, an adapter."""
MAX_SHOWN = 200


def weights_in(folder: Path, allow_pickle: bool) -> tuple[Path, ...]:
    """Return the files with a model's weights.

    They are `model.safetensors`, or what its index names, or else all safetensors. Raises
    `ModelLoadError` if there are none to use, or if files that the index names are missing, of
    another kind, or outside `folder`. Without an index, the names of shards say how many there are.
    """
    files = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith(OTHER_WEIGHTS))
    if files or has_usual_names(folder):
        return _named_in(folder, SAFETENSORS) or _all_shards(folder, files)
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled and not allow_pickle:
        raise ModelLoadError(
            f"{folder} has weights only as pickled .bin files, which can run code when read; "
            "use a model with safetensors, or --allow-pickle if you trust the source"
        )
    if not pickled:
        raise ModelLoadError(f"{folder} has no safetensors files; name a folder that has them")
    return _named_in(folder, PICKLED) or _all_shards(folder, pickled)


def has_usual_names(folder: Path) -> bool:
    """Whether transformers finds the safetensors of a folder: one file, or an index."""
    return any((folder / f"{SAFETENSORS}{end}").is_file() for end in ("", ".index.json"))


def _all_shards(folder: Path, files: list[Path]) -> tuple[Path, ...]:
    """Return files that no index names. Raises `ModelLoadError` if one of a set is missing."""
    names = {file.name for file in files}
    sets = {match.group(1, 2, 3) for name in names if (match := _SHARD.fullmatch(name))}
    wanted = {
        f"{start}{number:05d}{end}"
        for start, end, count in sets
        for number in range(1, min(int(count), MAX_SHARDS) + 1)
    }
    _refuse_missing(folder, sorted(wanted - names), len(wanted))
    return tuple(files)


def _refuse_missing(folder: Path, missing: list[str], num_files: int) -> None:
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} of the {num_files} files with its weights: "
            f"{', '.join(missing[:5])}; download them"
        )


def _is_inside(file: str) -> bool:
    """Whether a path that an index names lies below the folder of the index."""
    parts = re.split(r"[/\\]", file)
    return parts[0] != "" and ":" not in file and ".." not in parts


def _named_in(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the file of this name alone, or those that its index names; () if there is neither."""
    if (folder / name).is_file():
        return (folder / name,)
    path = folder / f"{name}.index.json"
    index = read_json(path)
    if index is None:
        return ()
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise ModelLoadError(f"{path} does not say which file has which weight; download it again")
    names = sorted(set(places.values()))
    for file in names:
        if not _is_inside(file) or not file.endswith(Path(name).suffix):
            raise ModelLoadError(
                f"{path} names {file[:MAX_SHOWN]!r}, which is not a {Path(name).suffix} file in "
                "its folder; download it again"
            )
    with reading(path):
        missing = [file for file in names if not (folder / file).is_file()]
    _refuse_missing(folder, missing, len(names))
    return tuple(folder / file for file in names)
