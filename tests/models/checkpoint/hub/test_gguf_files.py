"""Headers of GGUF files of a hub that the tests play. Only what is read is transferred."""

import io
from pathlib import Path

import pytest
from huggingface_hub import constants

from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.hub import errors as hub_errors
from stonechat_models.checkpoint.hub import gguf_files as hub_gguf
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models.tiny_gguf import write_tiny_gguf


class Hub:
    """Stands for `HfFileSystem`: the files of one repository, and how much was read of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_read = 0
        self.times_opened = 0

    def path(self, name: str) -> Path:
        owner, repository, *inside = name.split("/")
        assert (owner, repository) == ("owner", "tiny")
        return self.folder.joinpath(*inside)

    def info(self, name: str, revision: str | None) -> dict[str, object]:
        return {"name": name, "size": self.path(name).stat().st_size, "revision": revision}

    def open(self, name: str, mode: str, revision: str | None) -> io.BytesIO:
        self.times_opened += 1
        hub, content = self, self.path(name).read_bytes()

        class Source(io.BytesIO):
            size = len(content)

            def read(self, size: int | None = -1) -> bytes:
                data = super().read(size)
                hub.bytes_read += len(data)
                return data

        return Source(content)


@pytest.fixture
def hub(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_gguf, "require_network", lambda: None)
    (tmp_path / "files").mkdir()
    played = Hub(tmp_path / "files")
    monkeypatch.setattr("huggingface_hub.HfFileSystem", lambda: played)
    return played


def headers_of(model: str) -> tuple[object, ...]:
    headers = read_headers(EngineConfig(model=model), lambda line: None)
    return headers.name, headers.config.raw, headers.tensors, headers.weight_format


@pytest.mark.parametrize("first_bytes", [64, 1 << 10, 16 << 20])
def test_a_file_of_the_hub_is_planned_by_its_header(
    first_bytes: int, hub: Hub, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_gguf, "FIRST_BYTES", first_bytes)
    path = write_tiny_gguf(hub.folder / "some-Q8_0.gguf", "llama", "Q8_0")
    size = path.stat().st_size
    expected = headers_of(str(path))
    assert headers_of("owner/tiny/some-Q8_0.gguf") == expected
    if first_bytes < size:
        assert hub.bytes_read < size
    assert headers_of("owner/tiny/some-Q8_0.gguf") == expected  # from the cache
    assert hub.times_opened == 1
    (stored,) = (caches / "cache").rglob("some-Q8_0.gguf")
    assert stored.stat().st_size == size


def test_a_changed_file_is_read_again(hub: Hub) -> None:
    path = write_tiny_gguf(hub.folder / "some.gguf", "llama", "Q8_0")
    headers_of("owner/tiny/some.gguf")
    path.unlink()
    write_tiny_gguf(path, "llama", "F16")
    assert headers_of("owner/tiny/some.gguf") == headers_of(str(path))
    assert hub.times_opened == 2


def test_tensors_that_the_configuration_needs_are_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_gguf, "FIRST_BYTES", 1 << 10)
    name = "blk.1.attn_norm.weight"
    path = write_tiny_gguf(hub.folder / "some.gguf", "llama", "F32")
    monkeypatch.setattr(hub_gguf, "CONFIG_TENSORS", (name,))
    copy = read_gguf(hub_gguf.gguf_header("owner/tiny", "some.gguf", None, lambda line: None))
    original = read_gguf(path)
    assert original.tensors[name].data.any()
    for key, tensor in original.tensors.items():
        same = (copy.tensors[key].data == tensor.data).all()
        assert same if key == name else True
    assert any(not tensor.data.any() for tensor in copy.tensors.values())  # a hole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the Hugging Face hub has no such file"),
        (b"<html>", "is not a valid gguf file"),
        (b"GGUF" + bytes(5000), "too old"),
    ],
)
def test_what_is_no_gguf_file(
    content: bytes | None, message: str, hub: Hub, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_gguf, "FIRST_BYTES", 100)
    if content is not None:
        (hub.folder / "x.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        headers_of("owner/tiny/x.gguf")
    assert not [path for path in (caches / "cache").rglob("*") if path.is_file()]


def test_without_a_network_it_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_errors, "is_reachable", lambda: False)
    monkeypatch.setattr(hub_gguf, "require_network", hub_errors.require_network)
    with pytest.raises(ModelLoadError, match="there is no network"):
        headers_of("owner/tiny/x.gguf")
