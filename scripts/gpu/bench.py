"""Measure Stonechat on a GPU, offline, with random weights in the shapes of known models.

    python scripts/gpu/bench.py --out results

It measures:

- the device: bandwidth, and the rate of matrix products;
- the time until an engine is ready, by phases;
- decoding at several batch sizes and sampling modes, beside the limit that the measured bandwidth
  sets; the time of each kernel, and the time that the host works;
- prefill, beside the measured matmul rate, and a mixed load of prompts and answers;
- `stonechat serve` under load, beside the same load in process, and the time from its command to
  the first token;
- plain `transformers` on the same shapes.

It also compares each engine's logits with those of the plain model, and the attention kernels with
float64. What is off is named and marked in the tables, and is timed all the same; tests/gpu
says what is right.

Each part runs in a process of its own with a time limit, so its failure does not stop the others.
`bench_gpu.json` and `bench_gpu.md`, its Markdown tables, are written after each part, and the
present part's `part-*.json` after each figure. The tables also name each part that was skipped or
failed. At the end they go to standard output, less those of kernels. `--dry-run` runs everything on
a CPU with a tiny model.
"""

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from children import SECONDS, Child, Children
from table import markdown

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "server"), str(ROOT / "models"), str(ROOT)]

DEFAULT_SHAPES = ("qwen3-0.6b", "llama-3.2-1b", "llama-3.1-8b", "qwen3-30b-a3b-12-layers")
KERNELS = ("few", "some", "coded", "fetching", "plain")
"""Kernels of our own for products: for few rows, for some, for some with weights as stored; of the
first two those that fetch weights early, and those that do not."""
DRY_RUN = {
    "device": "cpu",
    "models": ["tiny"],
    "http_model": "tiny",
    "batches": [1, 2],
    "context": 40,
    "steps": 3,
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
    with contextlib.suppress(KeyboardInterrupt):  # the results so far are then shown
        if arguments.warm:
            warm(arguments, folder, words)
        with contextlib.closing(Children(parts(arguments), folder, words)) as children:
            for child in children:
                seconds_left = 60 * arguments.minutes - (time.time() - started)
                section: dict[str, Any] = {}
                results["sections"][child.name] = section
                child.run(min(seconds_left, arguments.most), section)
                results["seconds"] = time.time() - started
                save(results, folder)
    save(results, folder)
    if results["sections"]:
        print(f"\n{markdown(results, kernels=False)}")
    return int(any("error" in section for section in results["sections"].values()))


def save(results: dict[str, Any], folder: Path) -> None:
    text = json.dumps(results, indent=2)
    (folder / "bench_gpu.json").write_text(text, encoding="utf-8")
    (folder / "bench_gpu.md").write_text(markdown(results), encoding="utf-8")


def parts(arguments: argparse.Namespace) -> list[str]:
    """Return the names of all parts, the most useful first."""
    names = [
        *(["device"] if arguments.measure_device else []),
        *(f"model {shape}" for shape in arguments.models),
    ]
    if arguments.http:
        first = f"model {arguments.http_model}"
        position = names.index(first) + 1 if first in names else len(names)
        names.insert(position, f"http {arguments.http_model}")
    if arguments.compare:
        names += [f"compare {shape}" for shape in arguments.models]
    return names


def warm(arguments: argparse.Namespace, folder: Path, words: list[str] | None) -> None:
    """Compile the kernels of all shapes at once, each in a process with one layer of the model."""
    started = time.time()
    children = []
    for shape in arguments.models:
        with (folder / f"warm-{shape}.log").open("wb") as log:
            children.append(Child(f"warm {shape}", folder / f"warm-{shape}.json", words, log))
    try:
        for child in children:
            child.begin(SECONDS["warm"])
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, started + SECONDS["warm"] - time.time()))
    finally:
        for child in children:
            child.end()
    statuses = [child.process.returncode for child in children]
    print(f"compiled ahead in {time.time() - started:.0f} s: {statuses}", flush=True)


def run_part(arguments: argparse.Namespace) -> int:
    """In the child process: run one part. Write its results to `--notes` as they come."""
    notes = Path(arguments.notes)

    def note(results: dict[str, Any]) -> None:
        incomplete = notes.with_suffix(".tmp")
        incomplete.write_text(json.dumps(results), encoding="utf-8")
        incomplete.replace(notes)

    results: dict[str, Any] = {}
    try:
        from sections import Section, import_part

        import_part(arguments.part)
        deadline = float(sys.stdin.readline() or 0)
        started = time.time()
        section = Section(arguments, deadline, note)
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
    shapes = "model shapes, by their names in scripts/gpu/shapes.py"
    add("--models", nargs="+", default=list(DEFAULT_SHAPES), help=shapes)
    add("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    add("--context", type=int, default=512, help="prompt tokens of each sequence when decoding")
    add("--steps", type=int, default=16, help="decode steps of each of the timed rounds")
    add("--attention", default="auto", help="attention backend")
    add("--eager", action="store_true", help="no CUDA graphs")
    add("--no-fused", dest="fused", action="store_false", help="the model's own modules")
    add(
        "--kernels", nargs="*", choices=KERNELS, default=KERNELS, help="kernels for products to try"
    )
    add("--quantize", choices=["fp8", "int8", "int4"], help="precision of the weights")
    add("--kv-bytes", type=int, help="bytes of the KV cache (default: the free memory)")
    add("--http-model", default="llama-3.2-1b", help="shape to serve over HTTP")
    add("--streams", type=int, default=64, help="concurrent requests of the mixed load")
    add("--http-tokens", type=int, default=256, help="tokens per prompt and answer of that load")
    add("--modes", nargs="+", help="names of sampling modes (default: all of model_part.py)")
    add("--only-decode", action="store_true", help="no checks, prefill, mixed load, profiles")
    add("--minutes", type=float, default=8.0, help="time limit of the whole run")
    add("--most", type=float, default=1e9, help="seconds that a part may take")
    add("--warm", action="store_true", help="compile the kernels of all shapes first, at once")
    add("--no-device", dest="measure_device", action="store_false")
    add("--no-kernel-checks", dest="check_kernels", action="store_false")
    add("--no-http", dest="http", action="store_false")
    add("--one-process", action="store_true", help="also serve with the engine in one process")
    add("--no-compare", dest="compare", action="store_false")
    add("--dry-run", action="store_true", help="run everything with a tiny model on the CPU")
    add("--part", help=argparse.SUPPRESS)
    add("--notes", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.dry_run:
        vars(arguments).update(DRY_RUN)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
