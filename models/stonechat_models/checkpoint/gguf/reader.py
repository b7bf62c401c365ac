"""Reads GGUF files (versions 2 and 3, little-endian): metadata, and tensors mapped from the file.

The layout follows the specification in the ggml project (`docs/gguf.md`). The reader of the `gguf`
package wraps each token of a vocabulary in arrays of its own, which takes seconds for 49,152
tokens. This reader takes tens of milliseconds. It imports neither torch nor `gguf`.
"""

import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading

GgufValue = int | float | bool | str | list["GgufValue"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_VERSION = 99
"""A greater number is none of a version."""
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
# No file of a real model comes near these. They bound the time and memory that a damaged one takes.
MAX_VALUES, MAX_TENSORS = 1 << 16, 1 << 20
MAX_ITEMS = 1 << 22
MAX_STRING = 1 << 24
MAX_NESTING = 4
MANY_TEXTS = 1024

# id: (name, weights per block, bytes per block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

# Metadata value types. A scalar has a struct format; 8 is a string, 9 an array.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as it lies in the file.

    `shape` is in numpy's order (rows first, the reverse of the file's). `data` is uint8, read-only
    and mapped from the file. Its shape is `shape[:-1]` followed by the number of bytes of a row.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]
    start: int = 0
    """Bytes before the data, in the file."""

    def release(self) -> None:
        """Let this process's memory go without the data, until it is read again.

        Only pages that hold nothing else are given back. The system may keep them as file cache.
        """
        mapping = _mapping_of(self.data)
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (self.start + self.data.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if mapping is not None and size > 0 and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED, first, size)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata and tensors of a GGUF file, of all its parts if it is split.

    The file stays mapped as long as the tensors' data is in use.
    """

    path: Path
    metadata: dict[str, GgufValue]
    tensors: dict[str, GgufTensor]
    data_start: int = 0
    """Bytes before the first tensor's data, in the file at `path`."""

    @property
    def architecture(self) -> str:
        """The ggml name of the architecture, such as `llama`."""
        name = self.metadata.get("general.architecture")
        return name if isinstance(name, str) else ""

    def value(self, key: str) -> GgufValue | None:
        """Return the metadata under `<architecture>.<key>`, or None if it is missing."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def strings(self, key: str) -> list[str]:
        """Return an array of strings, which is empty if the key is missing or not an array."""
        value = self.metadata.get(key, [])
        return [str(item) for item in value] if isinstance(value, list) else []

    def integer(self, key: str) -> int | None:
        """Return an integer, or None if the key is missing or not an integer."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping_of(data: object) -> mmap.mmap | None:
    """Return the mapped file that an array is a view of; None if it is memory of its own."""
    while data is not None:
        if isinstance(data, mmap.mmap):
            return data
        data = data.obj if isinstance(data, memoryview) else getattr(data, "base", None)
    return None


def read_gguf(path: Path, *, skip_texts: bool = False) -> GgufFile:
    """Read a GGUF file. If it is the first part of a split file, read the other parts too.

    `skip_texts` leaves out arrays of many texts, such as a vocabulary: they take most of the time.
    Raises `ModelLoadError` when a part is missing, cut short, or not GGUF.
    """
    first = read_part(path, skip_texts=skip_texts)
    count = first.integer("split.count") or 1
    if count == 1:
        return first
    tensors = dict(first.tensors)
    for part in _other_parts(path, count):
        tensors.update(read_part(part, skip_texts=skip_texts).tensors)
    return GgufFile(path, first.metadata, tensors, first.data_start)


_FIRST_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")


def gguf_parts(path: Path) -> list[Path]:
    """Return the path itself, or the paths of all parts if it is the first of a split file.

    Raises `ModelLoadError` if a part is missing.
    """
    match = _FIRST_PART.search(path.name)
    return [path, *_other_parts(path, int(match[1]))] if match else [path]


def _other_parts(path: Path, count: int) -> list[Path]:
    match = _FIRST_PART.search(path.name)
    if match is None or int(match[1]) != count:
        raise ModelLoadError(f"{path} is one of {count} parts: name the first, -00001-of-…")
    stem = path.name[: match.start()]
    parts = [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelLoadError(
            f"{path} is split; put all its parts into one folder. Missing: {', '.join(missing[:5])}"
        )
    return parts


def read_part(path: Path, *, skip_texts: bool = False) -> GgufFile:
    """Read one file, which may be a part of a split one. Raises what `read_gguf` raises."""
    with reading(path):
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin with the word GGUF")
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return _parse(path, _Cursor(buffer, skip_texts=skip_texts))
        except struct.error as error:
            raise ValueError("it ends in the middle of its header") from error
        except UnicodeDecodeError as error:
            raise ValueError("a text in its header is none") from error


class _Cursor:
    """Reads little-endian values in sequence."""

    def __init__(self, buffer: mmap.mmap, *, skip_texts: bool = False) -> None:
        self.buffer = buffer
        self.position = 0
        self.skip_texts = skip_texts
        """Whether arrays of more than `MANY_TEXTS` texts are left out."""

    def scalar(self, code: str) -> int | float | bool:
        layout = struct.Struct("<" + code)
        value: int | float | bool = layout.unpack_from(self.buffer, self.position)[0]
        self.position += layout.size
        return value

    def count(self, code: str = "Q", limit: int | None = None) -> int:
        number = int(self.scalar(code))
        if limit is not None and number > limit:
            raise ValueError(f"a count of {number} is too large")
        return number

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        buffer, position, unpack = self.buffer, self.position, struct.Struct("<Q").unpack_from
        texts: list[str] = []
        append: Callable[[str], None] = texts.append
        for _ in range(count):
            start = position + 8
            size = unpack(buffer, position)[0]
            position = start + size
            if position > len(buffer) or size > MAX_STRING:
                raise ValueError("a string is too long or runs past the end of the file")
            append(buffer[start:position].decode())
        self.position = position
        return texts

    def skip_strings(self, count: int) -> None:
        buffer, position, unpack = self.buffer, self.position, struct.Struct("<Q").unpack_from
        for _ in range(count):
            position += 8 + unpack(buffer, position)[0]
        if position > len(buffer):
            raise ValueError("a string runs past the end of the file")
        self.position = position

    def value(self, kind: int, nesting: int = 0) -> GgufValue:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or nesting == MAX_NESTING:
            raise ValueError(f"unknown metadata type {kind}, or arrays in arrays in arrays")
        item_kind, count = self.count("I"), self.count(limit=MAX_ITEMS)
        if item_kind == _STRING and self.skip_texts and count > MANY_TEXTS:
            self.skip_strings(count)
            return []
        if item_kind == _STRING:
            return [*self.strings(count)]
        if item_kind not in _SCALARS:
            return [self.value(item_kind, nesting + 1) for _ in range(count)]
        layout = struct.Struct(f"<{count}{_SCALARS[item_kind]}")
        values = layout.unpack_from(self.buffer, self.position)
        self.position += layout.size
        return list(values)


def _parse(path: Path, cursor: _Cursor) -> GgufFile:
    cursor.position = len(MAGIC)
    version = cursor.count("I")
    if version not in VERSIONS:
        raise ModelLoadError(f"{path} {_version_problem(version)}")
    num_tensors, num_values = cursor.count(limit=MAX_TENSORS), cursor.count(limit=MAX_VALUES)
    metadata: dict[str, GgufValue] = {}
    for _ in range(num_values):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"{key} is there twice")
        metadata[key] = cursor.value(cursor.count("I"))
    headers = [_tensor_header(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its alignment is {alignment}")
    start = -(-cursor.position // alignment) * alignment
    raw = np.frombuffer(cursor.buffer, dtype=np.uint8)
    tensors = [_map_tensor(path, raw, start, *header) for header in headers]
    _refuse_overlap([header[3] for header in headers], tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        raise ValueError("two tensors have the same name")
    return GgufFile(path, metadata, by_name, start)


def _version_problem(version: int) -> str:
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        return "is a big-endian GGUF file; use a little-endian one"
    if version > MAX_VERSION:
        return "is damaged: what follows the word GGUF is no version; download it again"
    age = "too old" if version < VERSIONS[0] else "newer than this Stonechat"
    return f"has GGUF version {version}, which is {age}; use a file of version 2 or 3"


def _refuse_overlap(offsets: list[int], tensors: list[GgufTensor]) -> None:
    """Raise `ValueError` for tensors that share bytes: a small file would need a lot of memory."""
    end = 0
    for offset, tensor in sorted(zip(offsets, tensors, strict=True), key=itemgetter(0)):
        if offset < end:
            raise ValueError(f"tensor {tensor.name} overlaps the one before it")
        end = offset + tensor.data.nbytes


def _tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    num_dimensions = cursor.count("I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"tensor {name} has {num_dimensions} dimensions")
    shape = tuple(cursor.count() for _ in range(num_dimensions))[::-1]
    if 0 in shape:
        raise ValueError(f"tensor {name} has a dimension of size 0")
    return name, shape, cursor.count("I"), cursor.count()


def _map_tensor(
    path: Path,
    raw: npt.NDArray[np.uint8],
    start: int,
    name: str,
    shape: tuple[int, ...],
    type_id: int,
    offset: int,
) -> GgufTensor:
    if type_id not in TENSOR_TYPES:
        raise ModelLoadError(
            f"{path}: use a file with another quantisation; tensor {name} has the unknown type "
            f"{type_id}"
        )
    type_name, block_size, block_bytes = TENSOR_TYPES[type_id]
    if shape[-1] % block_size:
        raise ValueError(f"the rows of {name} are not a multiple of {block_size} weights")
    byte_shape = (*shape[:-1], shape[-1] // block_size * block_bytes)
    first = start + offset
    last = first + prod(byte_shape)
    if last > raw.size:
        raise ModelLoadError(
            f"{path} is cut short: tensor {name} runs past its end; download it again"
        )
    return GgufTensor(name, type_name, shape, raw[first:last].reshape(byte_shape), first)
