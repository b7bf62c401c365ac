"""`scripts/install` mends an environment whose creation was interrupted."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE_PYTHON = """\
#!/bin/sh
# Behaves as Python does towards scripts/install, and writes down what it is asked for.
echo "$*" >>"$LOG"
here=$(dirname "$0")
case "$*" in
    *_base_executable*) echo "$BASE" ;;
    *"-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$BASE" "$folder/bin/python" ;;
    *ensurepip*) [ -z "${STOP:-}" ] || exit 130; touch "$here/pip" ;;
    *"-m pip"*) [ -e "$here/pip" ] || { echo "No module named pip" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script, and a Python that installs nothing."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install", tmp_path / "scripts")
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def install(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHON": str(checkout / "python"), "LOG": str(checkout / "log")}
    return subprocess.run(
        [checkout / "scripts" / "install"],
        capture_output=True,
        text=True,
        env={**os.environ, **own, "BASE": own["PYTHON"], "VENV": "env", **variables},
    )


def times_created(checkout: Path) -> int:
    return (checkout / "log").read_text().count("-m venv")


def test_a_whole_environment_is_kept(checkout: Path) -> None:
    for _ in range(2):
        result = install(checkout)
        assert (result.returncode, result.stderr) == (0, "")
    assert times_created(checkout) == 1
    assert "installed: env/bin/stonechat" in result.stdout


def test_an_interrupted_installation_mends_itself(checkout: Path) -> None:
    assert install(checkout, STOP="1").returncode != 0
    result = install(checkout)
    assert result.returncode == 0
    assert "env is incomplete: it is created anew" in result.stdout
    assert times_created(checkout) == 2


@pytest.mark.parametrize("trace", ["pip is missing", "pip is half there"])
def test_an_environment_without_a_whole_pip_is_created_anew(checkout: Path, trace: str) -> None:
    assert install(checkout).returncode == 0
    if trace == "pip is missing":
        (checkout / "env" / "bin" / "pip").unlink()
    else:
        (checkout / "env" / ".creating").touch()
    assert install(checkout).returncode == 0
    assert times_created(checkout) == 2


def test_a_half_installed_package_is_installed_again(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    packages = checkout / "env" / "lib" / "python3.11" / "site-packages"
    for name in ("whole-1.dist-info", "half of it-1.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
    (packages / "whole-1.dist-info" / "RECORD").touch()
    assert install(checkout).returncode == 0
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]
    assert times_created(checkout) == 1
