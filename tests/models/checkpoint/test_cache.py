"""The cache: a folder is filled once, wholly or not at all, by one process at a time."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stonechat_models.checkpoint import cache
from stonechat_models.checkpoint.cache import (
    HEADER_BYTES,
    cache_root,
    content_hash,
    file_sha256,
    fill_once,
    sampled_hash,
)
from stonechat_models.errors import ModelLoadError


def silent(line: str) -> None:
    assert line


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        (target / "half").touch()
        raise ModelLoadError("no")

    with pytest.raises(ModelLoadError, match="no"):
        fill_once(tmp_path / "x", silent, fail)
    assert list(tmp_path.iterdir()) == []
    built = fill_once(tmp_path / "x", silent, lambda target: (target / "whole").touch())
    assert (built / "whole").exists()


def test_no_lock_file_stays(tmp_path: Path) -> None:
    locked: list[bool] = []
    for _ in range(2):
        fill_once(tmp_path / "x", silent, lambda _: locked.append((tmp_path / "x.lock").exists()))
    assert locked == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_another_process_has_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    def build(target: Path) -> None:
        (target / "mine").touch()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "theirs").touch()

    folder = fill_once(tmp_path / "x", silent, build)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_threads_fill_a_folder_once(tmp_path: Path) -> None:
    calls: list[int] = []
    gate = threading.Barrier(4)

    def run() -> None:
        gate.wait()
        fill_once(tmp_path / "x", silent, lambda target: calls.append(1))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_processes_fill_a_folder_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from stonechat_models.checkpoint.cache import fill_once\n"
        "def build(target):\n"
        "    print('built'); time.sleep(0.3); (target / 'f').touch()\n"
        "fill_once(Path(sys.argv[1]), lambda line: None, build)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(outputs) == ["", "", "built\n"]
    assert all(process.returncode == 0 for process in processes)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match="cannot write the cache"):
        fill_once(tmp_path / "file" / "x", silent, lambda target: None)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG paths")
def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "stonechat"


def test_a_sampled_hash_sees_size_header_and_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content = bytearray(3 * HEADER_BYTES)
    hashes = set()
    for change in (None, 10, HEADER_BYTES - 1, len(content) - 1):
        if change is not None:
            content[change] ^= 1
        path.write_bytes(bytes(content))
        hashes.add(sampled_hash([path]))
    path.write_bytes(bytes(content) + b"\0")
    hashes.add(sampled_hash([path]))
    assert len(hashes) == 5
    assert sampled_hash([path]) == sampled_hash([path.rename(tmp_path / "g")])


def test_a_content_hash_is_kept_until_a_file_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths, hashed = [tmp_path / "a", tmp_path / "b"], []
    monkeypatch.setattr(
        cache, "file_sha256", lambda path: hashed.append(path.name) or file_sha256(path)
    )
    for path in paths:
        path.write_bytes(bytes(10))
    first = content_hash(paths)
    assert content_hash(paths) == first
    assert hashed == ["a", "b"]
    paths[1].write_bytes(bytes(9) + b"x")
    os.utime(paths[1], ns=(1, 1))
    assert content_hash(paths) != first
    assert hashed == ["a", "b", "b"]
