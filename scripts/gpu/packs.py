"""What `day` brings along and home: installed wheels, Triton's cache, and packed results."""

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

CACHED = (".cubin", ".json", ".ptx", ".so")
"""Files of Triton's cache that a later run reads."""
MAX_BYTES = 15 << 20
"""Of one file brought home."""
MAX_CACHE_BYTES = 160 << 20
"""Of a cache before it is packed."""


def install(bundle: Path, work: Path) -> Path | None:
    """Install the bundle's wheels, unless they already are. Return the folder to import from."""
    wheels = sorted(bundle.glob("*.whl"))
    if not wheels:
        return None
    name = hashlib.sha256("\n".join(wheel.name for wheel in wheels).encode()).hexdigest()[:12]
    site = work / f"site-{name}"
    if not site.is_dir():
        incomplete = work / f"incomplete-{name}"
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
        options += ["--disable-pip-version-check", "--upgrade", "--target", str(incomplete)]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)], check=True
        )
        incomplete.rename(site)
    return site


def compile_python(folders: list[Path]) -> None:
    """Compile all modules once: many processes import them at the same time."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0"]
    subprocess.run([*command, *map(str, folders)], stdout=subprocess.DEVNULL)


def cache_pack(name: str) -> str:
    return f"triton-{name}.tar.xz"


def unpack_cache(bundle: Path, cache: Path) -> int:
    """Fill an empty cache of Triton with a pack of an earlier run. Return the number of files."""
    pack = bundle / cache_pack(cache.name)
    cache.mkdir(parents=True, exist_ok=True)
    if not pack.is_file() or any(cache.iterdir()):
        return 0
    with tarfile.open(pack) as archive:
        archive.extractall(cache, filter="data")
        return len(archive.getnames())


def pack_cache(cache: Path, target: Path) -> None:
    """Write a cache of Triton to `target`, the newest kernels first, as far as they have room."""
    groups = sorted(cache.glob("*/"), key=lambda path: -path.stat().st_mtime)
    most = MAX_CACHE_BYTES
    while groups and not _write(target, _newest(groups, most), cache, "w:xz", preset=1):
        most //= 2


def _newest(groups: list[Path], most: int) -> list[Path]:
    files = []
    for group in groups:
        members = [path for path in sorted(group.iterdir()) if path.suffix in CACHED]
        most -= sum(path.stat().st_size for path in members)
        if most < 0:
            break
        files += members
    return files


def pack_results(results: Path, target: Path) -> None:
    files = sorted(path for path in results.rglob("*") if path.is_file())
    if not _write(target, files, results.parent, "w:gz", compresslevel=6):
        print(f"{target.name} is larger than {MAX_BYTES >> 20} MiB: left out", flush=True)


def _write(target: Path, files: list[Path], root: Path, mode: Any, **settings: Any) -> bool:
    """Replace `target` at once, unless the files are too large. Return whether they are not."""
    incomplete = target.with_name(f".{target.name}")
    with tarfile.open(incomplete, mode, **settings) as archive:
        for path in files:
            archive.add(path, str(path.relative_to(root)))
    if incomplete.stat().st_size > MAX_BYTES:
        incomplete.unlink()
        return False
    incomplete.replace(target)
    return True
