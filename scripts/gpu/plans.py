"""The plans of `day`: which parts run, in which order, and for how long at most."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[2]
GPU_TESTS = ["tests/gpu"]
KERNEL_TESTS = ("tests/models/backends", "tests/models/sampling", "tests/models/hardware")
"""Where tests stand that run kernels on a CUDA device if there is one."""
TOGETHER = "not slow_compile and not alone and not nightly"
"""The tests that may run beside each other; those that compile for minutes are left out."""
PROCESSES = max(1, min(12, (os.cpu_count() or 2) - 2))
EARLY = {"STONECHAT_PDL": "1"}
LATE = {"STONECHAT_PDL": "0"}
"""With and without programmatic dependent launch."""
CHANGED = ("attention", "sampler", "graphs", "state", "codes", "experts", "fused")
"""The subjects of tests/gpu that the third plan runs."""
ONLY_1B = ("--models", "llama-3.2-1b", "--no-http", "--no-compare")


@dataclass(frozen=True, slots=True)
class Part:
    """A command of a plan. `{out}` in it stands for the folder of the part's results."""

    name: str
    command: list[str]
    seconds: float
    """Its time limit."""
    reserve: float = 0.0
    """The parts before it leave this many seconds for it."""
    tail: int = 25
    """How many of the last lines of its output are shown."""
    shown: str = ""
    """A file of its folder that is shown instead, if it is there."""
    cache: str = "bench"
    """Its cache of Triton."""
    background: bool = False
    """Whether it runs beside the parts after it, up to the next one that measures."""
    measures: bool = False
    """Whether it needs the machine for itself."""
    environment: dict[str, str] = field(default_factory=dict)
    """More variables. `{out}` is replaced here too."""


def plan(name: str) -> list[Part]:
    """Return the parts of a plan, the most useful first. Raises `KeyError` for an unknown name."""
    return {
        "first": first,
        "second": second,
        "third": third,
        "correct": correct,
        "speed": speed,
        "more": more,
        "sweep": sweep,
    }[name]()


def first() -> list[Part]:
    """Is it right, and how fast is a small model."""
    bench_1b = ("--batches", "1", "64", "--modes", "greedy", "temperature 1")
    fused = ["tests/gpu/test_cuda_fused.py", "tests/gpu/test_cuda_engine.py"]
    return [
        smoke(20),
        warm(150, LATE, "llama-3.2-1b"),
        warm(150, EARLY, "llama-3.2-1b"),
        pytest_run("tests", GPU_TESTS, 110, LATE),
        pytest_run("kernels", kernel_tests(), 50, LATE, "-m", "not nightly", reserve=25),
        pytest_run("alone", GPU_TESTS, 45, LATE, "-m", "alone", reserve=20, measures=True),
        bench("bench-1b", 60, LATE, *ONLY_1B, *bench_1b, reserve=50),
        pytest_run("pdl", fused, 40, EARLY, "-k", "not parity", reserve=20),
        bench(
            *("bench-1b-pdl", 30, EARLY, *ONLY_1B, *bench_1b, "--no-device", "--only-decode"),
            reserve=24,
        ),
        script("sweep", 60, "--seconds", "45", "--out", "{out}/sweep.jsonl", reserve=30),
        script("gemv", 40, "--seconds", "30", "--out", "{out}/gemv.jsonl", reserve=20),
        script("sampling", 25, "--seconds", "20", "--out", "{out}/sampling.jsonl", reserve=15),
    ]


def second() -> list[Part]:
    """Is it right after what the first run showed."""
    words = ("--batches", "1", "64", "256", "--modes", "greedy", "temperature 1", "top-k, top-p")
    words += ("--no-kernel-checks",)
    return [
        warm(80, {}, "llama-3.2-1b"),
        pytest_run("tests", GPU_TESTS, 85),
        bench("bench-1b", 40, {}, *ONLY_1B, *words, reserve=36),
        script("gemv", 18, "--seconds", "12", "--out", "{out}/gemv.jsonl", reserve=16),
        script("sampling", 15, "--seconds", "10", "--out", "{out}/sampling.jsonl", reserve=13),
        script(
            "mixed_steps", 20, "--seconds", "10", "--out", "{out}/mixed_steps.jsonl", reserve=14
        ),
    ]


def third() -> list[Part]:
    """The figures."""
    files = [f"tests/gpu/test_cuda_{name}.py" for name in CHANGED]
    models = ["llama-3.2-1b", "llama-3.1-8b", "llama-3.1-8b-q4_k_m"]
    models += ["qwen3-30b-a3b-12-layers", "qwen3-0.6b"]
    words = ["--models", *models, "--modes", "greedy", "temperature 1", "top-k, top-p"]
    words += ["--no-compare", "--no-kernel-checks", "--most", "70"]
    return [
        pytest_run("tests", files, 38, {}, "-k", "not served_as_it_is"),
        bench("bench", 225, {}, *words, reserve=200),
        script("sweep", 30, "--seconds", "20", "--out", "{out}/sweep.jsonl"),
        script("gemv", 20, "--seconds", "12", "--out", "{out}/gemv.jsonl"),
    ]


def correct() -> list[Part]:
    return [
        smoke(30),
        bench("small", 75, {}, "--models", "small", "--no-http", "--no-compare"),
        pytest_run("tests", GPU_TESTS, 140),
        pytest_run("kernels", kernel_tests(), 90, {}, "-m", "not nightly"),
        pytest_run("alone", GPU_TESTS, 70, {}, "-m", "alone", measures=True),
        pytest_run("slow", GPU_TESTS, 150, {}, "-m", "slow_compile"),
    ]


def speed() -> list[Part]:
    models = ["llama-3.2-1b", "llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b-12-layers"]
    return [smoke(30), bench("bench", 540, {}, "--warm", "--models", *models)]


def more() -> list[Part]:
    def quantised(name: str, seconds: float, *flags: str) -> Part:
        words = ["--models", "llama-3.1-8b", "--batches", "1", "64", "--no-http", "--no-compare"]
        words += ["--modes", "greedy", "temperature 1"]
        return bench(name, seconds, {}, *words, *flags)

    decode = (*ONLY_1B, "--batches", "1", "64", "--only-decode", "--no-device")
    return [
        quantised("fp8", 80, "--quantize", "fp8"),
        quantised("int4", 80, "--quantize", "int4", "--no-device"),
        script("experts", 45, "--seconds", "35", "--out", "{out}/experts.jsonl"),
        bench("unfused", 45, {}, *decode, "--no-fused"),
        bench("eager", 45, {}, *decode, "--eager"),
        quantised("int8", 80, "--quantize", "int8", "--no-device"),
    ]


def sweep() -> list[Part]:
    return [
        script("sweep", 240, "--seconds", "225", "--out", "{out}/sweep.jsonl"),
        script("gemv", 80, "--seconds", "60", "--out", "{out}/gemv.jsonl", reserve=40),
        script("sampling", 50, "--seconds", "40", "--out", "{out}/sampling.jsonl", reserve=20),
    ]


# --- kinds of parts ---


def smoke(seconds: float) -> Part:
    return Part("smoke", [sys.executable, "scripts/gpu/smoke.py"], seconds, tail=40)


def script(name: str, seconds: float, *words: str, reserve: float = 0.0) -> Part:
    command = [sys.executable, f"scripts/gpu/{name}.py", *words]
    return Part(name, command, seconds, reserve, tail=50, cache=name, measures=True)


def bench(
    name: str, seconds: float, variables: dict[str, str], *words: str, reserve: float = 0.0
) -> Part:
    command = [sys.executable, "scripts/gpu/bench.py", "--out", "{out}", "--minutes"]
    command += [f"{(seconds - 3) / 60:.3f}", *words]
    return Part(
        name, command, seconds, reserve, tail=50, measures=True, environment=dict(variables)
    )


def warm(seconds: float, variables: dict[str, str], *models: str) -> Part:
    """Compile the kernels of the models while tests run."""
    command = [sys.executable, "scripts/gpu/bench.py", "--out", "{out}", "--only-warm"]
    name = "-".join(["warm", *variables.values()])
    return Part(
        name,
        [*command, "--models", *models],
        seconds,
        tail=10,
        background=True,
        environment=dict(variables),
    )


def pytest_run(
    name: str,
    paths: list[str],
    seconds: float,
    variables: Mapping[str, str] = MappingProxyType({}),
    *words: str,
    reserve: float = 0.0,
    measures: bool = False,
) -> Part:
    """A run of pytest that loads no plug-ins but those it uses, since others may warn.

    In several processes, unless it needs the machine for itself.
    """
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--durations=5", "-rfE"]
    command += ["-W", "default", "-p", "no:cacheprovider", "-p", "xdist", "-p", "report_outcomes"]
    command += [f"--junitxml={{out}}/{name}.xml", "-m", TOGETHER, *words]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["-p", "pytest_timeout", "--timeout=60"]
    if not measures:
        # One by one: slow tests often stand side by side, and would wait in one process.
        command += ["-n", str(PROCESSES), "--dist", "load", "--maxschedchunk", "1"]
    environment = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": f"{ROOT}/scripts/gpu",
        "OUTCOMES": "{out}/outcomes.txt",
        **variables,
    }
    return Part(
        name,
        [*command, *paths],
        seconds,
        reserve,
        tail=45,
        shown="outcomes.txt",
        cache="tests",
        measures=measures,
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
