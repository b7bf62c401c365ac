"""Reads the vision and audio parts of a model from their own GGUF file, which llama.cpp calls
`mmproj`."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stonechat_models.checkpoint.gguf.config import SEEING
from stonechat_models.checkpoint.gguf.metadata import integer
from stonechat_models.checkpoint.gguf.projectors.audio import AUDIO_PROJECTORS
from stonechat_models.checkpoint.gguf.projectors.configs import deep_layers, width_of
from stonechat_models.checkpoint.gguf.projectors.projector import Projector, Whole
from stonechat_models.checkpoint.gguf.projectors.vision import PROJECTORS
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor, read_gguf
from stonechat_models.checkpoint.gguf.weights import dequantize
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

MARK = "mmproj"
"""What the names of such files have in them."""
NO_TOWER = (
    "its vision part is not there: put its mmproj file beside the GGUF file, or name it (--mmproj)"
)
TYPES = ("BF16", "F16", "F32")
"""The types of files in the order in which one is chosen; other types are behind them."""
AUDIO = ("a.", "mm.a.")
"""How the names of tensors of an audio part begin."""
_LAYER = re.compile(r"^(a\.blk|v\.(?:blk|deepstack))\.(\d{1,4})\.")
_KERNEL_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class TowerWeight:
    """A parameter of a tower, and the tensors that make it."""

    name: str
    """Its name in transformers."""
    parts: tuple[GgufTensor, ...]
    layout: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        first, count = self.parts[0].shape, len(self.parts)
        if count == 1:
            return self.layout(np.broadcast_to(np.float32(0), first)).shape
        if len(first) == _KERNEL_DIMENSIONS:
            return (*first[:2], count, *first[2:])
        return (sum(part.shape[0] for part in self.parts), *first[1:])

    def values(self) -> np.ndarray:
        """Return its values, float32. Kernels for several frames become one for all of them."""
        values = [dequantize(part) for part in self.parts]
        if len(values) == 1:
            return self.layout(values[0])
        if values[0].ndim == _KERNEL_DIMENSIONS:
            return np.stack(values, axis=2)
        return np.concatenate(values)


def read_mmproj(path: Path) -> GgufFile:
    """Read the file of a vision or audio part. Raises `ModelLoadError` for another file."""
    mmproj = read_gguf(path)
    if mmproj.architecture != "clip":
        raise ModelLoadError(
            f"{path} is not the vision or audio part of a model (mmproj), but a model of "
            f"architecture {mmproj.architecture!r}"
        )
    return mmproj


def projectors_of(mmproj: GgufFile) -> list[Projector]:
    """Return the entries of its parts: vision, audio, or both in this order.

    Beside a vision part, an audio part is left out if it has no entry, or that of other models.
    Raises `UnsupportedModelError` if no entry exists.
    """
    name = mmproj.value("vision.projector_type") or mmproj.value("projector_type")
    audio_name = mmproj.value("audio.projector_type") or name
    vision, audio = PROJECTORS.get(str(name)), AUDIO_PROJECTORS.get(str(audio_name))
    known = PROJECTORS | AUDIO_PROJECTORS
    if not (vision or audio) or (name is not None and str(name) not in known):
        unknown = audio_name if name is None else name
        kind = "without a type" if unknown is None else f"of type {unknown!r}"
        raise UnsupportedModelError(
            f"{mmproj.path.name}: vision and audio parts {kind} are not supported; those of type "
            f"{', '.join(known)} are"
        )
    if vision and audio and not {*vision.models.values()} & {*audio.models.values()}:
        audio = None
    return [part for part in (vision, audio) if part is not None]


def whole_of(mmproj: GgufFile, gguf: GgufFile) -> Whole:
    """Return what the parts and a language model are together.

    Raises `UnsupportedModelError` if they are not parts of one model.
    """
    projectors = projectors_of(mmproj)
    for projector in projectors:
        if gguf.architecture not in projector.models:
            raise UnsupportedModelError(
                f"{mmproj.path.name} belongs to models of architecture "
                f"{', '.join(projector.models)}, and {gguf.path.name} is one of {gguf.architecture}"
            )
        width, size = width_of(mmproj, *projector.output), integer(gguf, "embedding_length")
        if width != size:
            raise UnsupportedModelError(
                f"{mmproj.path.name} belongs to another model than {gguf.path.name}: it makes "
                f"embeddings of size {width}, and the model has {size}"
            )
    return projectors[0].models[gguf.architecture]


def tower_weights(mmproj: GgufFile) -> Iterator[TowerWeight]:
    """Yield the parameters of the towers.

    Raises `UnsupportedModelError` for a tensor that towers of its type do not have.
    """
    projectors, is_swapped = projectors_of(mmproj), _is_swapped(mmproj)
    of_audio = next((p for p in projectors if p.section != "vision_config"), None)
    of_vision = next((p for p in projectors if p is not of_audio), None)
    groups: dict[str, list[tuple[int, GgufTensor]]] = {}
    layouts = {}
    for tensor in mmproj.tensors.values():
        name = _swapped(tensor.name) if is_swapped else tensor.name
        projector = of_audio if name.startswith(AUDIO) else of_vision
        if projector is not None and name not in projector.unused:
            key, target = _place(mmproj, projector, name)
            groups.setdefault(target, []).append(([*projector.names].index(key), tensor))
            layouts[target] = projector.layouts.get(_of_any_layer(tensor.name), _as_stored)
    for target, found in groups.items():
        parts = [tensor for _, tensor in sorted(found, key=lambda pair: pair[0])]
        yield TowerWeight(target, tuple(parts), partial(layouts[target], mmproj))


def _as_stored(mmproj: GgufFile, values: np.ndarray) -> np.ndarray:
    return values


def tower_dtype(type_names: Iterable[str]) -> str:
    """Return the dtype that keeps a tower's weights: bfloat16 if any is stored so, else float32."""
    return "bfloat16" if "BF16" in type_names else "float32"


def _place(mmproj: GgufFile, projector: Projector, name: str) -> tuple[str, str]:
    """Return the key in the table of names, and the parameter's name."""
    match, own = _LAYER.match(name), _of_any_layer(name)
    base, _, kind = own.rpartition(".")
    if own in projector.names:
        key, target = own, projector.names[own]
    elif base in projector.names and kind in ("weight", "bias"):
        key, target = base, f"{projector.names[base]}.{kind}"
    else:
        raise UnsupportedModelError(f"{mmproj.path.name}: the tensor {name} is not supported")
    if match is None:
        return key, target
    number = int(match[2])
    if match[1] == "v.deepstack":
        layers = deep_layers(mmproj)
        if number not in layers:
            raise UnsupportedModelError(
                f"{mmproj.path.name}: the tensor {name} is of none of the layers "
                "vision.is_deepstack_layers"
            )
        number = layers.index(number)
    return key, target.replace("*", str(number))


def _of_any_layer(name: str) -> str:
    """Return a tensor's name with `*` in place of the number of its layer."""
    return _LAYER.sub(r"\1.*.", name)


def _is_swapped(mmproj: GgufFile) -> bool:
    """Whether the two projections of its feed-forward blocks have each other's name.

    Early converters wrote them so.
    """
    down = mmproj.tensors.get("v.blk.0.ffn_down.weight")
    if down is None:
        return False
    width = integer(mmproj, "vision.embedding_length")
    return down.shape[0] != width and down.shape[-1] == width


def _swapped(name: str) -> str:
    names = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    return re.sub("ffn_(?:up|down)", lambda match: names[match[0]], name)


def ranked_mmprojs(files: Sequence[str], model: str) -> list[str]:
    """Return which of `files` may be the vision part of the GGUF file `model`, all by their paths.

    They lie in the model's folder or above it. The nearest is first, then the one whose name is the
    most like the model's, then the one of the first of `TYPES`.
    """
    folder, words = model.rpartition("/")[0], _words(model)

    def rank(file: str) -> tuple[int, int, int, int, str]:
        own = _words(file)
        kind = next((i for i, name in enumerate(TYPES) if name.lower() in own), len(TYPES))
        return (-file.count("/"), -len(words & own), len(_others(file, model)), kind, file)

    found = [
        file
        for file in files
        if file.lower().endswith(".gguf")
        and MARK in file.rpartition("/")[2].lower()
        and f"{folder}/".startswith(f"{file.rpartition('/')[0]}/".lstrip("/"))
    ]
    return sorted(found, key=rank)


def has_name_of(mmproj: Path, model: Path) -> bool:
    """Whether the name of a vision part says nothing that the name of the model does not say."""
    return not _others(mmproj.name, model.name)


def _others(file: str, model: str) -> set[str]:
    """Return the words of a vision part's name that are not in the model's."""
    return _words(file) - _words(model) - {"model", *(name.lower() for name in TYPES)}


def _words(path: str) -> set[str]:
    return set(re.split(r"[-_./]", path.rpartition("/")[2].lower())) - {"gguf", MARK}


def mmprojs_beside(path: Path) -> list[Path]:
    """Return what may be the vision part beside a model's GGUF file, the likeliest first."""
    files: list[str] = []
    with suppress(OSError):  # a folder that cannot be listed
        files = [other.name for other in path.parent.iterdir() if other != path]
    return [path.with_name(name) for name in ranked_mmprojs(files, path.name)]


def why_blind(gguf: GgufFile) -> str:
    """Return why a language model without a vision part takes no images; or nothing."""
    return NO_TOWER if gguf.architecture in SEEING else ""
