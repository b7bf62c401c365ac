"""The plans of `day`: which parts run, in which order, and for how long at most."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import KERNELS

ROOT = Path(__file__).parents[2]
GPU_TESTS = ["tests/gpu"]
NEW_TESTS = [
    *("codes", "fused", "state", "build", "images", "experts", "sampler", "lora", "ranks"),
    *("graphs", "mixed_graphs", "attention"),
]
"""Of those in `GPU_TESTS`: first the ones of what has not run on a GPU, or has changed since."""
KERNEL_TESTS = ("tests/models/backends", "tests/models/sampling", "tests/models/hardware")
"""Where tests stand that run kernels on a CUDA device if there is one."""
TOGETHER = "not slow_compile and not alone and not nightly"
"""The tests that may run beside each other; those that compile for minutes are left out."""
PROCESSES = max(1, min(12, (os.cpu_count() or 2) - 2))
WITHOUT = ("--no-http", "--no-compare")
DECODE = ("--batches", "1", "64", "--modes", "greedy", "--only-decode", "--no-device")
LEAST_SHARE = 1 / 3
"""A part does not start with less than this share of its seconds."""


@dataclass(frozen=True, slots=True)
class Part:
    """A command of a plan. `{out}` in it stands for the folder of the part's results."""

    name: str
    command: list[str]
    seconds: float
    """Its time limit."""
    tail: int = 25
    """How many of the last lines of its output are shown."""
    shown: str = ""
    """A file of its folder that is shown instead, if it is there."""
    cache: str = "bench"
    """Its cache of Triton."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables. `{out}` is replaced here too."""


def allot(parts: Sequence[Part], seconds: float) -> list[float]:
    """Divide `seconds`: each part gets its own, in order, and the last what is left.

    A part that would get less than `LEAST_SHARE` of its seconds gets none: it is cut, and the parts
    after it may have the rest.
    """
    limits = []
    for part in parts:
        limit = min(part.seconds, seconds)
        limits.append(limit if limit >= LEAST_SHARE * part.seconds else 0.0)
        seconds -= limits[-1]
    return limits


def correct() -> list[Part]:
    """Is it right: first what has not run on a GPU, within 345 seconds; then all tests."""
    new = [f"tests/gpu/test_cuda_{name}.py" for name in NEW_TESTS]
    return [
        smoke(25),
        pytest_run("new", new, 130),
        pytest_run("alone", GPU_TESTS, 85, "-m", "alone", is_alone=True),
        bench("small", 50, "--models", "small", "--no-http", "--no-compare"),
        pytest_run("tests", [*GPU_TESTS, *(f"--ignore={path}" for path in new)], 90),
        pytest_run("kernels", kernel_tests(), 80, "-m", "not nightly"),
        pytest_run("slow", GPU_TESTS, 105, "-m", "slow_compile"),
    ]


def speed() -> list[Part]:
    """How fast are models of several shapes and a server, and with fewer kernels of our own.

    `codes` has weights as stored, and `dequantised` the same without a kernel for more than 4 rows.
    `plain` and `fetching` say whether fetching weights early pays in a model. The choice at a start
    times products one after the other, where little can be fetched meanwhile.
    """
    modes = ["--modes", "greedy", "temperature 1", "top-k, top-p"]
    short = ["--no-compare", "--no-kernel-checks", "--most"]
    models = ["--models", "llama-3.1-8b", "llama-3.2-1b"]
    stored = ["--models", "llama-3.1-8b-q4_k_m", "llama-3.1-8b-fp8"]
    batches = ["--batches", "1", "8", "16", "32", "64"]
    before = ["--kernels", *(kind for kind in KERNELS if kind != "coded")]
    return [
        bench("bench", 165, *models, *modes, *short, "100", "--one-process"),
        # Half of the time for each: the mixed load of the first took 29 s on an H200.
        bench("codes", 100, *stored, *batches, "--modes", "greedy", "--no-http", *short, "48"),
        products("plain", 44, "few", "some", "plain"),
        bench("dequantised", 40, *stored[:2], *WITHOUT, *DECODE, *before),
        products("fetching", 40, "few", "some", "fetching"),
        products("cublas", 40, "few", "plain"),
    ]


def variants() -> list[Part]:
    """How fast are recurrent layers, quantised weights, experts, and models without a fast path."""

    def quantised(name: str, seconds: float, *flags: str) -> Part:
        words = ["--models", "llama-3.1-8b", "--batches", "1", "64", *WITHOUT]
        words += ["--modes", "greedy", "temperature 1"]
        return bench(name, seconds, *words, *flags)

    one = ("--models", "llama-3.2-1b", *WITHOUT)
    return [
        bench("states", 85, "--models", "qwen3.5-4b", "lfm2-1.2b", *WITHOUT, *DECODE),
        quantised("fp8", 65, "--quantize", "fp8"),
        script("experts", 45),
        bench("mixture", 40, "--models", "qwen3-30b-a3b-12-layers", *WITHOUT, *DECODE),
        quantised("int4", 50, "--quantize", "int4", "--no-device"),
        bench("unfused", 35, *one, *DECODE, "--no-fused"),
        bench("eager", 35, *one, *DECODE, "--eager"),
        bench("0.6b", 30, "--models", "qwen3-0.6b", *WITHOUT, *DECODE),
        quantised("int8", 40, "--quantize", "int8", "--no-device"),
    ]


def sweep() -> list[Part]:
    """How fast are kernels with other tile sizes."""
    return [script("sweep", 220), script("gemv", 75), script("codes", 55), script("sampling", 45)]


PLANS = {plan.__name__: plan for plan in (correct, speed, variants, sweep)}
"""Each returns its parts, the most useful first."""
SECONDS = {"correct": 600, "speed": 465, "variants": 460, "sweep": 430}
"""What all parts of a plan need, with the start and the end of `day`."""
START_SECONDS = 25
"""Until the first part: the bundle is installed, and modules are compiled."""
END_SECONDS = 8
"""Kept for the end of the run."""


# --- kinds of parts ---


def smoke(seconds: float) -> Part:
    return Part("smoke", [sys.executable, "scripts/gpu/smoke.py"], seconds, tail=40)


def script(name: str, seconds: float) -> Part:
    command = [sys.executable, f"scripts/gpu/{name}.py", "--seconds", f"{seconds - 10:g}"]
    command += ["--out", f"{{out}}/{name}.jsonl"]
    return Part(name, command, seconds, tail=50, cache=name)


def bench(name: str, seconds: float, *words: str) -> Part:
    command = [sys.executable, "scripts/gpu/bench.py", "--out", "{out}", "--minutes"]
    command += [f"{(seconds - 3) / 60:.3f}", *words]
    return Part(name, command, seconds, tail=50)


def products(name: str, seconds: float, *kernels: str) -> Part:
    """Decoding of two models, with products by these kernels only, and PyTorch's."""
    pair = ("--models", "llama-3.2-1b", "llama-3.1-8b")
    return bench(name, seconds, *pair, *WITHOUT, *DECODE, "--kernels", *kernels)


def pytest_run(
    name: str,
    paths: list[str],
    seconds: float,
    *words: str,
    is_alone: bool = False,
) -> Part:
    """A run of pytest that loads no plug-ins but those it uses, since others may warn.

    In several processes, unless it needs the machine for itself.
    """
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--durations=5", "-rfE"]
    command += ["-W", "default", "-p", "no:cacheprovider", "-p", "xdist", "-p", "report_outcomes"]
    command += [f"--junitxml={{out}}/{name}.xml", "-m", TOGETHER, *words]
    if importlib.util.find_spec("pytest_timeout"):
        # Tests that run alone start servers, which compile kernels in each of their processes.
        command += ["-p", "pytest_timeout", f"--timeout={seconds - 5 if is_alone else 60:g}"]
    if not is_alone:
        # One by one: slow tests often stand side by side, and would wait in one process.
        command += ["-n", str(PROCESSES), "--dist", "load", "--maxschedchunk", "1"]
    environment = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": f"{ROOT}/scripts/gpu",
        "OUTCOMES": "{out}/outcomes.txt",
    }
    return Part(
        name,
        [*command, *paths],
        seconds,
        tail=45,
        shown="outcomes.txt",
        cache="tests",
        environment=environment,
    )


def kernel_tests() -> list[str]:
    """The test files that choose a CUDA device if there is one."""
    return sorted(
        path.relative_to(ROOT).as_posix() for path in _test_files() if "DEVICE" in path.read_text()
    )


def _test_files() -> Iterator[Path]:
    for folder in KERNEL_TESTS:
        yield from (ROOT / folder).rglob("test_*.py")
