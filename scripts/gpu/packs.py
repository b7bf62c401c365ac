"""What `day` brings along and home: installed wheels, Triton's cache, and packed results."""

import hashlib
import json
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

CACHED = (".cubin", ".json", ".ptx", ".so")
"""Files of Triton's cache that a later run reads."""
MAX_CACHE_BYTES = 160 << 20
"""Of a cache before it is packed, which takes seconds."""


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
    for group in cache.glob("*/__grp__*.json"):  # it holds whole paths
        names = json.loads(group.read_text())["child_paths"]
        paths = {name: str(group.parent / name) for name in names}
        group.write_text(json.dumps({"child_paths": paths}))
    return sum(1 for path in cache.rglob("*") if path.is_file())


def pack_cache(cache: Path, target: Path, most_bytes: float) -> None:
    """Write a cache of Triton to `target`, the newest kernels first, as far as they have room."""
    groups = sorted(cache.glob("*/"), key=lambda path: -path.stat().st_mtime)
    most = MAX_CACHE_BYTES
    write = partial(_write, target, root=cache, most=most_bytes, mode="w:xz", preset=1)
    while groups and not write(_newest(groups, most)):
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


def pack_results(results: Path, target: Path, most: float) -> None:
    files = sorted(path for path in results.rglob("*") if path.is_file())
    if not _write(target, files, results.parent, most, "w:gz", compresslevel=6):
        print(f"{target.name} is larger than {most / 1e6:g} MB: left out", flush=True)


def _write(
    target: Path, files: list[Path], root: Path, most: float, mode: Any, **settings: Any
) -> bool:
    """Replace `target` at once, unless it would be too large. Return whether it is not."""
    incomplete = target.with_name(f".{target.name}")
    with tarfile.open(incomplete, mode, **settings) as archive:
        for path in files:
            archive.add(path, str(path.relative_to(root)))
    if incomplete.stat().st_size > most:
        incomplete.unlink()
        return False
    incomplete.replace(target)
    return True
