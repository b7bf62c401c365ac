"""Measure the engine alone (no HTTP) against plain `transformers` generate, in one run.

Tokens a second at several numbers of concurrent requests, and for the prefill of one long prompt.
The engine runs as configured; `generate` runs the same weights one request at a time, in the same
dtype when `--backend transformers` is given (a native or quantised engine has a dtype of its own:
the report names it). Example:

    python scripts/bench_engine.py --backend transformers --dtype float32 --json engine.json
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from stonechat_models import EngineConfig, GenerateRequest, SamplingParams
from stonechat_models.build import build_engine
from stonechat_models.engine import Engine

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
        max_batch_tokens=arguments.max_batch_tokens,
        prefix_caching=False,
    )
    started = time.perf_counter()
    engine, _ = build_engine(config, lambda line: print(line, file=sys.stderr))
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
    measured = {n: bench_decode(engine, n, arguments.repeats) for n in arguments.concurrency}
    for n, speed in measured.items():
        print(f"engine, {n:3d} requests: {speed:8.1f} tokens/s")
    prefill = max(bench_prefill(engine, i) for i in range(arguments.repeats))
    print(f"engine, prefill of {PREFILL_TOKENS}: {prefill:8.1f} tokens/s")
    report["engine"] = {"decode": measured, "prefill": prefill}
    if arguments.reference:
        report["generate"] = bench_reference(config, arguments.repeats, measured, prefill)
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
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=2, help="the best of these is reported")
    parser.add_argument("--no-reference", dest="reference", action="store_false")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40000, (length,), generator=generator).tolist()


def params_of(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def bench_decode(engine: Engine, concurrency: int, repeats: int) -> float:
    """Output tokens a second of `concurrency` requests that start together, prefill included."""
    return max(_one_decode(engine, concurrency, seed) for seed in range(repeats))


def _one_decode(engine: Engine, concurrency: int, seed: int) -> float:
    for i in range(concurrency):
        prompt = prompt_of(PROMPT_TOKENS, 1000 * seed + i)
        engine.add(
            GenerateRequest(
                request_id=f"d{seed}-{concurrency}-{i}",
                prompt_token_ids=prompt,
                params=params_of(OUTPUT_TOKENS),
            )
        )
    started, num_tokens = time.perf_counter(), 0
    while engine.has_work:
        num_tokens += len(engine.step())
    assert num_tokens == concurrency * OUTPUT_TOKENS
    return num_tokens / (time.perf_counter() - started)


def bench_prefill(engine: Engine, seed: int) -> float:
    """Prompt tokens a second of one long prompt, to its first token."""
    engine.add(
        GenerateRequest(
            request_id=f"p{seed}",
            prompt_token_ids=prompt_of(PREFILL_TOKENS, seed),
            params=params_of(1),
        )
    )
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return PREFILL_TOKENS / (time.perf_counter() - started)


def bench_reference(
    config: EngineConfig, repeats: int, measured: dict[int, float], prefill: float
) -> dict[str, float]:
    """`transformers` generate, one request at a time, on the same weights, float32 on a CPU."""
    from stonechat_models.device import choose_device, choose_dtype
    from stonechat_models.loader import load_module, resolve_model

    device = choose_device(config.device)
    files = resolve_model(config, print)
    dtype = choose_dtype(config.dtype, files.config, device)
    module = load_module(files, replace(config, threads=None), device, dtype)
    decode = max(_generate(module, PROMPT_TOKENS, OUTPUT_TOKENS, device) for _ in range(repeats))
    one = max(_generate(module, PREFILL_TOKENS, 1, device) for _ in range(repeats))
    print(f"generate ({dtype}), one at a time: {decode:8.1f} tokens/s")
    for n, speed in measured.items():
        print(f"  engine / generate at {n:3d}: {speed / decode:5.2f}x")
    print(f"generate, prefill: {one * PREFILL_TOKENS:8.1f} tokens/s")
    print(f"  engine / generate: {prefill / (one * PREFILL_TOKENS):5.2f}x")
    return {"decode": decode, "prefill": one * PREFILL_TOKENS}


def _generate(
    module: torch.nn.Module, num_prompt: int, num_output: int, device: torch.device
) -> float:
    """Output tokens a second of one call."""
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
