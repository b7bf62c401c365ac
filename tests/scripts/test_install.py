"""`scripts/install` mends an environment, and empties no folder that is something else."""

import fcntl
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
    *"import ensurepip"*) [ -z "${NO_ENSUREPIP:-}" ] ;;
    *"-m venv"*)
        for folder; do :; done
        sleep "${PAUSE:-0}"
        mkdir -p "$folder/bin"
        [ "${STOP:-}" != venv ] || exit 130
        cp "$BASE" "$folder/bin/python"
        touch "$folder/pyvenv.cfg"
        ;;
    *ensurepip*)
        [ -z "${STOP:-}" ] || exit 130
        [ ! -e "$here/no pip" ] || exit 1
        sleep "${PAUSE:-0}"
        touch "$here/pip"
        ;;
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
    run = start(checkout, **variables)
    output, errors = run.communicate()
    return subprocess.CompletedProcess(run.args, run.returncode, output, errors)


def start(checkout: Path, **variables: str) -> subprocess.Popen[str]:
    own = {"PYTHON": str(checkout / "python"), "LOG": str(checkout / "log")}
    return subprocess.Popen(
        [checkout / "scripts" / "install"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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


@pytest.mark.parametrize("place", ["venv", "ensurepip"])
def test_an_interrupted_installation_mends_itself(checkout: Path, place: str) -> None:
    assert install(checkout, STOP=place).returncode != 0
    result = install(checkout)
    assert result.returncode == 0
    assert "env is incomplete: it is created anew" in result.stdout
    assert times_created(checkout) == 2


@pytest.mark.parametrize("trace", ["pip cannot be added", "pip is half there"])
def test_an_environment_without_a_whole_pip_is_created_anew(checkout: Path, trace: str) -> None:
    assert install(checkout).returncode == 0
    if trace == "pip cannot be added":
        (checkout / "env" / "bin" / "pip").unlink()
        (checkout / "env" / "bin" / "no pip").touch()
    else:
        (checkout / "env" / ".creating").touch()
    assert install(checkout).returncode == 0
    assert times_created(checkout) == 2
    assert sorted(path.name for path in (checkout / "env" / "bin").iterdir()) == ["pip", "python"]


def test_an_environment_without_pip_gets_one_and_is_kept(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    (checkout / "env" / "bin" / "pip").unlink()
    (checkout / "env" / "of the user").touch()
    result = install(checkout)
    assert (result.returncode, result.stderr) == (0, "")
    assert "created anew" not in result.stdout
    assert (checkout / "env" / "of the user").exists()
    assert times_created(checkout) == 1


@pytest.mark.parametrize("content", ["thesis.txt", "bin/python3", ".hidden"])
def test_a_folder_that_is_no_environment_is_left_alone(checkout: Path, content: str) -> None:
    file = checkout / "env" / content
    file.parent.mkdir(parents=True)
    file.touch()
    result = install(checkout)
    assert result.returncode == 1
    assert result.stderr.startswith("env is not empty and is no virtual environment. ")
    assert [path for path in (checkout / "env").rglob("*") if path.is_file()] == [file]


def test_an_empty_folder_becomes_an_environment(checkout: Path) -> None:
    (checkout / "env").mkdir()
    assert install(checkout).returncode == 0
    assert (checkout / "env" / "pyvenv.cfg").exists()


def test_without_ensurepip_nothing_is_deleted(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    (checkout / "env" / "bin" / "pip").unlink()
    (checkout / "env" / "bin" / "no pip").touch()
    result = install(checkout, NO_ENSUREPIP="1")
    assert result.returncode == 1
    assert "install python3-venv" in result.stderr
    assert (checkout / "env" / "bin" / "python").exists()


def test_of_two_runs_at_once_one_waits(checkout: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(install, checkout, PAUSE="0.3") for _ in range(2)]
    results = [run.result() for run in runs]
    assert [(result.returncode, result.stderr) for result in results] == [(0, "")] * 2
    assert times_created(checkout) == 1


def test_a_run_that_waits_says_so(checkout: Path) -> None:
    script = checkout / "scripts" / "install"
    with script.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = start(checkout)
        assert run.stdout is not None
        assert run.stdout.readline() == "waiting for an installation that runs already\n"
        assert not (checkout / "log").exists()
    output, errors = run.communicate()
    assert (run.returncode, errors) == (0, "")
    assert "installed: env/bin/stonechat" in output


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
