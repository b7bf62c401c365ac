"""Measure the engine alone (no HTTP) against plain `transformers` generate, in one run.

Reports the throughput at several numbers of concurrent requests and in the prefill of one long
prompt, the parts of a decode step's time, and the share of the memory bandwidth that one request
reaches. The engine runs as configured. `generate` runs the same weights, one request at a time.
With `--backend transformers` both use the same dtype. A native or quantised engine has a dtype of
its own, which the report names. Example:

    python scripts/bench/engine.py --backend transformers --dtype float32 --json engine.json
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from stonechat_models import EngineConfig, GenerateRequest, SamplingParams
from stonechat_models.diagnostics.bandwidth import measure_bandwidth
from stonechat_models.engine.engine import Engine
from stonechat_models.runtime.build import build_engine

PROMPT_TOKENS = 50
OUTPUT_TOKENS = 128
PREFILL_TOKENS = 1000


def main() -> None:
    arguments = parse_arguments()
    config = EngineConfig(
        model=arguments.model,
        backend=arguments.backend,
        dtype=arguments.dtype,
        device=arguments.device,
        quantize=arguments.quantize,
        threads=arguments.threads,
        deterministic=arguments.deterministic,
        max_batch_tokens=arguments.max_batch_tokens,
        prefix_caching=False,
    )
    started = time.perf_counter()
    engine, _ = build_engine(config, lambda line: print(line, file=sys.stderr))
    assert isinstance(engine, Engine), "the model makes embeddings only"
    report: dict[str, object] = {
        "model": asdict(engine.model.info),
        "load_seconds": time.perf_counter() - started,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "engine": {},
    }
    print(
        f"{engine.model.info.backend}, {engine.model.info.dtype}, "
        f"{engine.model.info.quantization}, {torch.get_num_threads()} threads"
    )
    throughput = {n: bench_decode(engine, n, arguments.repeats) for n in arguments.concurrency}
    for n, rate in throughput.items():
        print(f"engine, {n:3d} requests: {rate:8.1f} tokens/s")
    prefill = max(bench_prefill(engine, i) for i in range(arguments.repeats))
    print(f"engine, prefill of {PREFILL_TOKENS}: {prefill:8.1f} tokens/s")
    parts = {n: step_parts(engine, n) for n in arguments.concurrency}
    print_parts(parts)
    roofline = measure_roofline(engine, throughput)
    report["engine"] = {
        "decode": throughput,
        "prefill": prefill,
        "step_milliseconds": parts,
        "roofline": roofline,
    }
    if arguments.reference:
        report["generate"] = bench_reference(config, arguments.repeats, throughput, prefill)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--backend", default="auto", choices=["auto", "native", "transformers"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quantize", default="auto", choices=["auto", "none", "int8", "int4"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--repeats", type=int, default=2, help="runs per measurement; the best counts"
    )
    parser.add_argument("--no-reference", dest="reference", action="store_false")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40000, (length,), generator=generator).tolist()


def params_of(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def bench_decode(engine: Engine, concurrency: int, repeats: int) -> float:
    """Return output tokens a second of `concurrency` requests, prefill included."""
    return max(_run_decode(engine, concurrency, seed) for seed in range(repeats))


def _run_decode(engine: Engine, concurrency: int, seed: int) -> float:
    for i in range(concurrency):
        prompt = prompt_of(PROMPT_TOKENS, 1000 * seed + i)
        add(engine, f"d{seed}-{concurrency}-{i}", prompt, OUTPUT_TOKENS)
    started, num_tokens = time.perf_counter(), 0
    while engine.has_work:
        num_tokens += len(engine.step())
    assert num_tokens == concurrency * OUTPUT_TOKENS
    return num_tokens / (time.perf_counter() - started)


class Timed:
    """Calls `function` and adds up the seconds that its calls take."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.perf_counter() - started


def step_parts(engine: Engine, concurrency: int) -> dict[str, float]:
    """Return the milliseconds per decode step in each part.

    The parts are the model (also by kernel, if the model measures that), the sampler, and the
    Python code around both.
    """
    for i in range(concurrency):
        add(engine, f"s{concurrency}-{i}", prompt_of(PROMPT_TOKENS, i), OUTPUT_TOKENS)
    while any(s.num_remaining > 1 for s in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()
    forward, sampler = Timed(engine.model.forward), Timed(engine.sampler.launch)
    kernel_seconds: Callable[[], dict[str, float]] = getattr(engine.model, "part_seconds", dict)
    before, started, num_steps = kernel_seconds(), time.perf_counter(), 0
    engine.model.forward = forward  # type: ignore[method-assign, assignment]
    engine.sampler.launch = sampler  # type: ignore[method-assign, assignment]
    while engine.has_work:
        engine.step()
        num_steps += 1
    seconds = time.perf_counter() - started
    engine.model.forward, engine.sampler.launch = (  # type: ignore[method-assign]
        forward.function,
        sampler.function,
    )
    parts = {
        "step": seconds,
        "model": forward.seconds,
        "sampler": sampler.seconds,
        "python": seconds - forward.seconds - sampler.seconds,
    }
    after = kernel_seconds()
    parts |= {f"model: {name}": after[name] - before[name] for name in after}
    return {name: value * 1e3 / num_steps for name, value in parts.items()}


def print_parts(parts: dict[int, dict[str, float]]) -> None:
    print(f"{'milliseconds per decode step':28}" + "".join(f"{n:>9}" for n in parts))
    for name in next(iter(parts.values())):
        print(f"  {name:26}" + "".join(f"{p[name]:9.2f}" for p in parts.values()))


def measure_roofline(engine: Engine, throughput: dict[int, float]) -> dict[str, float] | None:
    """Return the memory bandwidth, and the part of it that one request uses to read weights.

    None unless the engine runs on a CPU and one request was measured.
    """
    if engine.model.info.device != "cpu" or 1 not in throughput:
        return None
    bandwidth = measure_bandwidth("cpu", engine.model.info.threads)
    read_rate = engine.model.info.weight_bytes * throughput[1]
    print(
        f"memory bandwidth {bandwidth / 1e9:.1f} GB/s; one request reads weights at "
        f"{read_rate / 1e9:.1f} GB/s, which is {read_rate / bandwidth:.0%}"
    )
    return {"bandwidth": bandwidth, "reached": read_rate}


def add(engine: Engine, request_id: str, prompt: list[int], max_tokens: int) -> None:
    engine.add(
        GenerateRequest(
            request_id=request_id, prompt_token_ids=prompt, params=params_of(max_tokens)
        )
    )


def bench_prefill(engine: Engine, seed: int) -> float:
    """Return prompt tokens a second of one long prompt, up to its first output token."""
    add(engine, f"p{seed}", prompt_of(PREFILL_TOKENS, seed), 1)
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return PREFILL_TOKENS / (time.perf_counter() - started)


def bench_reference(
    config: EngineConfig, repeats: int, throughput: dict[int, float], prefill: float
) -> dict[str, float]:
    """Measure `transformers` generate on the same weights, one request at a time."""
    from stonechat_models.backends.transformers.pretrained import load_module
    from stonechat_models.checkpoint.resolve import resolve_model
    from stonechat_models.hardware.device import choose_device, choose_dtype

    device = choose_device(config.device)
    files = resolve_model(config, print)
    dtype = choose_dtype(config.dtype, files.config.dtype, device)
    module = load_module(files, replace(config, threads=None), device, dtype)
    decode = max(_generate(module, PROMPT_TOKENS, OUTPUT_TOKENS, device) for _ in range(repeats))
    prefills_a_second = max(_generate(module, PREFILL_TOKENS, 1, device) for _ in range(repeats))
    print(f"generate ({dtype}), one at a time: {decode:8.1f} tokens/s")
    for n, rate in throughput.items():
        print(f"  engine / generate at {n:3d}: {rate / decode:5.2f}x")
    print(f"generate, prefill: {prefills_a_second * PREFILL_TOKENS:8.1f} tokens/s")
    print(f"  engine / generate: {prefill / (prefills_a_second * PREFILL_TOKENS):5.2f}x")
    return {"decode": decode, "prefill": prefills_a_second * PREFILL_TOKENS}


def _generate(
    module: torch.nn.Module, num_prompt: int, num_output: int, device: torch.device
) -> float:
    """Return output tokens a second of one call."""
    ids = torch.tensor([prompt_of(num_prompt, 5)], device=device)
    started = time.perf_counter()
    with torch.inference_mode():
        output = module.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_output,
            min_new_tokens=num_output,
            do_sample=False,
            pad_token_id=0,
        )
    assert output.shape[1] == num_prompt + num_output
    return num_output / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
