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
`bench_gpu.json` is written after each part, and the present part's `part-*.json` after each figure.
At the end the script writes Markdown tables to `bench_gpu.md` and, less those of kernels, to
standard output. They also name each part that was skipped or failed. `--dry-run` runs everything on
a CPU with a tiny model.
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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from table import markdown

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "server"), str(ROOT / "models")]

LEAST_SECONDS = 10.0
"""A part does not start if less time than this is left."""
GRACE_SECONDS = 6.0
"""A part starts no new measurement this long before its time limit."""
SECONDS = {"device": 60.0, "warm": 90.0, "model": 150.0, "http": 180.0, "compare": 60.0}
"""The time limit of a part, by kind."""
DEFAULT_SHAPES = ("qwen3-0.6b", "llama-3.2-1b", "llama-3.1-8b", "qwen3-30b-a3b-12-layers")
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
                section = results["sections"][child.name] = {}
                child.run(min(seconds_left, arguments.most), section)
                results["seconds"] = time.time() - started
                text = json.dumps(results, indent=2)
                (folder / "bench_gpu.json").write_text(text, encoding="utf-8")
    (folder / "bench_gpu.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    (folder / "bench_gpu.md").write_text(markdown(results), encoding="utf-8")
    if results["sections"]:
        print(f"\n{markdown(results, kernels=False)}")
    return int(any("error" in section for section in results["sections"].values()))


def parts(arguments: argparse.Namespace) -> list[str]:
    """Return the names of all parts, the most useful first."""
    if arguments.only_warm:
        return []
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


class Child:
    """The process of one part. It imports what it needs, and then waits for `begin`."""

    def __init__(
        self, name: str, notes: Path, words: list[str] | None, log: IO[bytes] | None = None
    ) -> None:
        """`notes`: the file of its results. `log` gets its output."""
        self.name = name
        self._notes = notes
        notes.unlink(missing_ok=True)
        command = [sys.executable, __file__, *(words or sys.argv[1:])]
        self.process = subprocess.Popen(
            [*command, "--part", name, "--notes", str(notes)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            process_group=0,
        )

    def begin(self, seconds: float) -> None:
        """Let it start. It begins no new measurement shortly before the end of `seconds`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{time.time() + seconds - GRACE_SECONDS}\n".encode())
            self.process.stdin.flush()

    def run(self, seconds_left: float, results: dict[str, Any]) -> None:
        """Run it to its end or its time limit. Fill `results`, with an `error` if it failed."""
        if seconds_left < LEAST_SECONDS:
            print(f"{self.name}: skipped, out of time", flush=True)
            results["skipped"] = "out of time"
            self.end()
            return
        print(f"{self.name}:", flush=True)
        seconds = min(seconds_left, SECONDS[self.name.partition(" ")[0]])
        error = "interrupted"
        try:
            self.begin(seconds)
            status = self.process.wait(seconds)
            error = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
            error = error if status else ""
        except subprocess.TimeoutExpired:
            error = f"ended after {seconds:.0f} s"
        finally:
            self.end()
            if self._notes.is_file():
                results |= json.loads(self._notes.read_text())
            self._notes.unlink(missing_ok=True)
            if error:
                results.setdefault("error", error)
                print(f"  {results['error']}", flush=True)

    def end(self) -> None:
        """Kill it and what it started. After a clean end there is nothing left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


class Children:
    """The processes of all parts in turn. Each is started, to import, while the one before runs."""

    def __init__(self, names: list[str], folder: Path, words: list[str] | None) -> None:
        self._left = [(name, folder / f"part-{i}.json", words) for i, name in enumerate(names)]
        self._next: Child | None = self._start()

    def _start(self) -> Child | None:
        return Child(*self._left.pop(0)) if self._left else None

    def __iter__(self) -> Iterator[Child]:
        while self._next is not None:
            child, self._next = self._next, None
            self._next = self._start()
            yield child

    def close(self) -> None:
        if self._next is not None:
            self._next.end()


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
    add("--only-warm", action="store_true", help="do that, and nothing else")
    add("--no-device", dest="measure_device", action="store_false")
    add("--no-kernel-checks", dest="check_kernels", action="store_false")
    add("--no-http", dest="http", action="store_false")
    add("--no-compare", dest="compare", action="store_false")
    add("--dry-run", action="store_true", help="run everything with a tiny model on the CPU")
    add("--part", help=argparse.SUPPRESS)
    add("--notes", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.warm |= arguments.only_warm
    if arguments.dry_run:
        vars(arguments).update(DRY_RUN)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
