"""Measure Stonechat on a GPU, offline, with random weights in the shapes of known models.

    python scripts/gpu/bench.py --out results

It checks correctness first: the attention kernels against float64, and per shape the chosen
attention against the reference, fused modules against plain ones, and CUDA graphs against plain
steps. A part that fails a check is not timed. Then it measures:

- decoding at several batch sizes, beside the limit that the measured memory bandwidth sets, and the
  share of a step that the kernels take;
- prefill, beside the measured matmul rate, and the start time of the engine;
- `stonechat serve` under load, beside the same load in process, and the time from its command to
  the first token;
- plain `transformers` on the same shapes.

Each part runs in a process of its own with a time limit, so its failure does not stop the others.
The script writes `bench_gpu.json` after each part. At the end it writes Markdown tables to
`bench_gpu.md` and to standard output, which also name each part that was skipped or failed.
`--dry-run` runs everything on a CPU with a tiny model.
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
"""A part does not start if less time than this is left."""
GRACE_SECONDS = 15.0
"""A part starts no new measurement this long before its time limit."""
SECONDS = {"device": 60.0, "model": 100.0, "http": 120.0, "compare": 60.0}
"""The time limit of a part, by kind."""
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
    """Run all parts, or one with `--part`. Return the exit status: 1 if any part failed, else 0."""
    arguments = parse_arguments(words)
    if arguments.part is not None:
        return run_part(arguments)
    command = shlex.join(["python", "scripts/gpu/bench.py", *(words or sys.argv[1:])])
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"command": command, "sections": {}, "seconds": 0.0}
    started = time.time()
    for name in parts(arguments):
        seconds_left = 60 * arguments.minutes - (time.time() - started)
        results["sections"][name] = run_child(name, seconds_left, folder, words)
        results["seconds"] = time.time() - started
        (folder / "bench_gpu.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    text = markdown(results)
    (folder / "bench_gpu.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    return int(any("error" in section for section in results["sections"].values()))


def parts(arguments: argparse.Namespace) -> list[str]:
    """Return the names of all parts, the most useful first."""
    names = ["device", *(f"model {shape}" for shape in arguments.models)]
    if arguments.http:
        first = f"model {arguments.http_model}"
        position = names.index(first) + 1 if first in names else len(names)
        names.insert(position, f"http {arguments.http_model}")
    if arguments.compare:
        names += [f"compare {shape}" for shape in arguments.models]
    return names


def run_child(
    name: str, seconds_left: float, folder: Path, words: list[str] | None
) -> dict[str, Any]:
    """Run a part in a process of its own. Return its results, with an `error` if it failed."""
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
    results: dict[str, Any] = json.loads(notes.read_text()) if notes.is_file() else {}
    notes.unlink(missing_ok=True)
    if error is not None:
        results.setdefault("error", error)
        print(f"  {results['error']}", flush=True)
    return results


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the part's process and those that it started. After a clean end there are none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_part(arguments: argparse.Namespace) -> int:
    """In the child process: run one part. Write its results to `--notes` as they come."""
    notes = Path(arguments.notes)

    def note(results: dict[str, Any]) -> None:
        incomplete = notes.with_suffix(".tmp")
        incomplete.write_text(json.dumps(results), encoding="utf-8")
        incomplete.replace(notes)

    results: dict[str, Any] = {}
    started = time.time()
    try:
        from sections import Section

        section = Section(arguments, arguments.deadline, note)
        results = section.results
        section.run(arguments.part)
        note(results | {"seconds": time.time() - started})
    except Exception as error:
        traceback.print_exc()
        note(results | {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for bench_gpu.json and bench_gpu.md")
    add("--device", default="auto")
    add(
        "--models",
        nargs="+",
        default=list(DEFAULT_SHAPES),
        help="model shapes, by their names in scripts/gpu/shapes.py",
    )
    add("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    add("--context", type=int, default=512, help="prompt tokens of each sequence when decoding")
    add("--steps", type=int, default=32, help="number of decode steps to time")
    add("--attention", default="auto", help="attention backend")
    add(
        "--quantize",
        choices=["fp8", "int8", "int4"],
        help="quantise the weights to this precision before timing",
    )
    add(
        "--kv-bytes",
        type=int,
        default=None,
        help="bytes of the KV cache (default: the free memory)",
    )
    add("--http-model", default="llama-3.2-1b", help="shape to serve over HTTP")
    add("--streams", type=int, default=64, help="concurrent requests over HTTP")
    add("--http-tokens", type=int, default=256, help="tokens per prompt and per answer over HTTP")
    add("--minutes", type=float, default=8.0, help="time limit of the whole run")
    add("--no-http", dest="http", action="store_false")
    add("--no-compare", dest="compare", action="store_false")
    add("--dry-run", action="store_true", help="run everything with a tiny model on the CPU")
    add("--part", help=argparse.SUPPRESS)
    add("--deadline", type=float, help=argparse.SUPPRESS)
    add("--notes", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.dry_run:
        vars(arguments).update(DRY_RUN)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
