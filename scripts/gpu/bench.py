"""Measure Stonechat on a GPU, offline, with random weights in the shapes of known models.

    python scripts/gpu/bench.py --out results

Correctness comes first: the attention kernels against float64; then for each shape Triton against
the reference backend, fused modules against plain ones and CUDA graphs against plain steps; what is
wrong is not timed. Then decode tokens a second at several batch sizes beside the bound that the
measured memory bandwidth sets, how much of a step the kernels take, prefill tokens a second beside
the measured matmul rate, start time; `stonechat serve` under load beside the same load in process,
and the time from its command to the first token; and plain `transformers` on the same shapes.

Each part runs in a process of its own and has its share of `--minutes`, so none takes others down.
Writes `bench_gpu.json` after each part, and at the end Markdown tables to `bench_gpu.md` and to
standard output. What was left out or failed is named there. `--dry-run` goes through all of it on a
CPU with a tiny model.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from table import markdown

LEAST_SECONDS = 10.0
"""With less time than this left, a part is not begun."""
GRACE_SECONDS = 15.0
"""A part is told to begin nothing more this long before it is ended."""
SECONDS = {"device": 60.0, "model": 100.0, "http": 120.0, "compare": 60.0}
"""The most that a part of each kind may take."""
DEFAULT_SHAPES = ("qwen3-0.6b", "llama-3.2-1b", "llama-3.1-8b", "qwen3-30b-a3b-12-layers")
DRY_RUN = {
    "device": "cpu",
    "models": ["tiny"],
    "http_model": "tiny",
    "batches": [1, 2],
    "context": 40,
    "steps": 6,
    "kv_bytes": 8_000_000,
    "streams": 4,
    "http_tokens": 24,
}


def main(words: list[str] | None = None) -> int:
    """Run all parts, or with `--part` one; the exit status is 1 when any failed."""
    arguments = parse_arguments(words)
    if arguments.part is not None:
        return run_part(arguments)
    command = shlex.join(["python", "scripts/gpu/bench.py", *(words or sys.argv[1:])])
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"command": command, "sections": {}, "seconds": 0.0}
    started = time.time()
    for name in parts(arguments):
        left = 60 * arguments.minutes - (time.time() - started)
        results["sections"][name] = run_child(name, left, folder, words)
        results["seconds"] = time.time() - started
        (folder / "bench_gpu.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    text = markdown(results)
    (folder / "bench_gpu.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    return int(any("error" in found for found in results["sections"].values()))


def parts(arguments: argparse.Namespace) -> list[str]:
    """All parts in the order of their worth."""
    names = ["device", *(f"model {shape}" for shape in arguments.models)]
    if arguments.http:
        first = f"model {arguments.http_model}"
        at = names.index(first) + 1 if first in names else len(names)
        names.insert(at, f"http {arguments.http_model}")
    if arguments.compare:
        names += [f"compare {shape}" for shape in arguments.models]
    return names


def run_child(
    name: str, seconds_left: float, folder: Path, words: list[str] | None
) -> dict[str, Any]:
    """Run a part in a process of its own; what it noted, and what ended it if it did not end."""
    if seconds_left < LEAST_SECONDS:
        print(f"{name}: skipped, out of time", flush=True)
        return {"skipped": "out of time"}
    print(f"{name}:", flush=True)
    seconds = min(seconds_left, SECONDS[name.partition(" ")[0]])
    notes = folder / "part.json"
    notes.unlink(missing_ok=True)
    deadline = time.time() + max(0.0, seconds - GRACE_SECONDS)
    command = [sys.executable, __file__, *(words or sys.argv[1:])]
    command += ["--part", name, "--deadline", str(deadline), "--notes", str(notes)]
    process = subprocess.Popen(command, start_new_session=True)
    error = None
    try:
        status = process.wait(seconds)
        if status < 0:
            error = f"ended by signal {-status}"
        elif status:
            error = f"ended with status {status}"
    except subprocess.TimeoutExpired:
        error = f"ended after {seconds:.0f} s"
    finally:
        _end_group(process)
    found: dict[str, Any] = json.loads(notes.read_text()) if notes.is_file() else {}
    notes.unlink(missing_ok=True)
    if error is not None:
        found.setdefault("error", error)
        print(f"  {found['error']}", flush=True)
    return found


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The part's process and those that it started; none is left after a clean end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_part(arguments: argparse.Namespace) -> int:
    """In the child: run one part and write what it finds to `--notes` as it goes."""
    notes = Path(arguments.notes)

    def note(found: dict[str, Any]) -> None:
        incomplete = notes.with_suffix(".tmp")
        incomplete.write_text(json.dumps(found), encoding="utf-8")
        incomplete.replace(notes)

    found: dict[str, Any] = {}
    started = time.time()
    try:
        from sections import Section

        section = Section(arguments, arguments.deadline, note)
        found = section.found
        section.run(arguments.part)
        note(found | {"seconds": time.time() - started})
    except Exception as error:
        traceback.print_exc()
        note(found | {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for bench_gpu.json and bench_gpu.md")
    add("--device", default="auto")
    add("--models", nargs="+", default=list(DEFAULT_SHAPES), help="see scripts/gpu/shapes.py")
    add("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    add("--context", type=int, default=512, help="prompt tokens when decoding")
    add("--steps", type=int, default=32, help="decode steps that are timed")
    add("--attention", default="auto", help="attention backend")
    add("--quantize", choices=["fp8", "int8", "int4"], help="time quantised weights")
    add("--kv-bytes", type=int, default=None, help="default: what is free")
    add("--http-model", default="llama-3.2-1b", help="the shape that is served over HTTP")
    add("--streams", type=int, default=64, help="requests at a time over HTTP")
    add("--http-tokens", type=int, default=256, help="tokens of prompts and of answers there")
    add("--minutes", type=float, default=8.0, help="for all of it")
    add("--no-http", dest="http", action="store_false")
    add("--no-compare", dest="compare", action="store_false")
    add("--dry-run", action="store_true", help="a tiny model on the CPU, to see that all runs")
    add("--part", help=argparse.SUPPRESS)
    add("--deadline", type=float, help=argparse.SUPPRESS)
    add("--notes", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.dry_run:
        vars(arguments).update(DRY_RUN)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
