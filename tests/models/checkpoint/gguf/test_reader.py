"""Compares the GGUF reader with the `gguf` package's, and reads damaged files."""

import re
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from stonechat_models.checkpoint.gguf.reader import (
    MANY_TEXTS,
    TENSOR_TYPES,
    gguf_parts,
    read_gguf,
)
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import ModelLoadError
from tests.models.tiny_gguf import write_tiny_gguf


@pytest.mark.parametrize("weight_type", ["F32", "Q4_1", "Q8_0", "Q5_0", "F16"])
def test_reads_what_the_gguf_package_reads(weight_type: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "qwen3moe", weight_type)
    gguf_file, expected = read_gguf(path), gguf.GGUFReader(path)
    for key, field in expected.fields.items():
        if not key.startswith("GGUF."):
            assert gguf_file.metadata[key] == field.contents(), key
    assert list(gguf_file.tensors) == [tensor.name for tensor in expected.tensors]
    for tensor in expected.tensors:
        our_tensor = gguf_file.tensors[tensor.name]
        assert our_tensor.type_name == tensor.tensor_type.name
        assert our_tensor.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert np.array_equal(our_tensor.data.ravel(), tensor.data.view(np.uint8).ravel())


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    sizes = {t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    assert {i: sizes[i] for i in TENSOR_TYPES if i in sizes} == TENSOR_TYPES


def test_tensors_cannot_be_written(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    data = read_gguf(path).tensors["output_norm.weight"].data
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_a_large_vocabulary_is_read_with_few_calls(default_model_files: ModelFiles) -> None:
    assert default_model_files.gguf is not None
    num_calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        gguf_file = read_gguf(default_model_files.gguf)
    finally:
        sys.setprofile(None)
    assert len(gguf_file.strings("tokenizer.ggml.tokens")) == 49152
    num_strings = sum(len(gguf_file.strings(key)) for key in gguf_file.metadata)
    assert num_calls < 6 * num_strings + 20_000


@pytest.mark.parametrize("size", [0, 3, 20, 200, 5000, -1])
def test_a_cut_file_is_refused(size: int, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelLoadError):
        read_gguf(path)


def test_damaged_files_raise_no_other_error(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf", "llama").read_bytes()
    path, rng = tmp_path / "bad.gguf", np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(whole[:8000])
        for place in rng.integers(0, len(bad), size=5):
            bad[place] = int(rng.integers(0, 256))
        path.write_bytes(bytes(bad) + whole[8000:])
        try:
            read_gguf(path)
        except ModelLoadError:
            continue


def test_tensors_may_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    sizes, count = (8, 16, 4), 3
    offsets = ((0, 32, 96), (96, 0, 64), (0, 0, 96), (0, 28, 96), (64, 0, 0))
    for places in offsets:
        content = b"GGUF" + struct.pack("<IQQ", 3, count, 0)
        for name, size, offset in zip("abc", sizes, places, strict=True):
            content += struct.pack("<Q", 1) + name.encode()
            content += struct.pack("<IQIQ", 1, size, 0, offset)
        path.write_bytes(content + bytes(256))
        if places in offsets[:2]:
            assert len(read_gguf(path).tensors) == count
            continue
        with pytest.raises(ModelLoadError, match="overlaps the one before it"):
            read_gguf(path)


def test_other_versions_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    contents = {
        b"GGUF" + struct.pack("<I", 1) + bytes(64): "has GGUF version 1, which is too old",
        b"GGUF" + struct.pack("<I", 4) + bytes(64): "version 4, which is newer than this",
        b"GGUF" + struct.pack(">I", 3) + bytes(64): "is a big-endian GGUF file",
        b"GGUFgarbage" * 9: "is damaged: what follows the word GGUF is no version; download it",
        b"GGUF": "it ends in the middle of its header",
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0): "it ends in the middle of its header",
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xff": "a text in its header is none",
        b"PK\x03\x04" + bytes(64): "is not a valid gguf file",
        b"": "is not a valid gguf file",
        b"version https://git-lfs.github.com/spec/v1\n": "only points to the file; `git lfs pull`",
    }
    for content, message in contents.items():
        path.write_bytes(content)
        with pytest.raises(ModelLoadError, match=message) as failure:
            read_gguf(path)
        assert not re.search(r"\d{5}|codec|unpack|mmap", str(failure.value).replace(str(path), ""))
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_gguf(tmp_path / "missing.gguf")


def test_all_parts_of_a_split_file_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    for i, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.count", 2)
        writer.add_uint16("split.no", i)
        writer.add_tensor(f"t{i}", np.full((2, 3), i, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert gguf_parts(paths[0]) == paths
    tensors = read_gguf(paths[0]).tensors
    assert {n: float(t.data.view(np.float32).max()) for n, t in tensors.items()} == {
        "t0": 0.0,
        "t1": 1.0,
    }
    with pytest.raises(ModelLoadError, match="name the first"):
        read_gguf(paths[1])


def test_long_lists_of_texts_can_be_skipped(default_model_files: ModelFiles) -> None:
    """All else is the same, and a text that runs past the end is still refused."""
    assert default_model_files.gguf is not None
    whole = read_gguf(default_model_files.gguf)
    short = read_gguf(default_model_files.gguf, skip_texts=True)
    lists = [key for key in whole.metadata if len(whole.strings(key)) > MANY_TEXTS]
    assert "tokenizer.ggml.tokens" in lists
    skipped = [key for key in lists if short.metadata[key] == []]
    assert {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"} <= set(skipped)
    for key in whole.metadata.keys() - set(skipped):
        assert short.metadata[key] == whole.metadata[key]
    assert short.data_start == whole.data_start
    assert [*short.tensors] == [*whole.tensors]


def test_a_released_tensor_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = np.arange(1_000_000, dtype=np.float32)
    writer.add_tensor("a", values)
    writer.add_tensor("b", values)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()
    tensors = read_gguf(path).tensors
    for _ in range(2):
        for tensor in tensors.values():
            assert (tensor.data.view(np.float32) == values).all()
            tensor.release()
    before = resident_bytes()
    assert tensors["b"].data.sum()
    assert resident_bytes() - before > 3_000_000
    tensors["b"].release()
    assert resident_bytes() - before < 1_000_000


def resident_bytes() -> int:
    """Bytes of mapped files that are in this process's memory."""
    text = Path("/proc/self/smaps_rollup").read_text()
    line = next(line for line in text.splitlines() if line.startswith("Pss_File"))
    return int(line.split()[1]) << 10
