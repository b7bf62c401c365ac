"""Time the Triton sampler and the one in plain PyTorch, by kind of rows, vocabulary and batch.

    python scripts/gpu/sampling.py --seconds 20 --out sampling.jsonl

Each result is a line of JSON, written as soon as it is there: first the microseconds of a pass as
the host sees it, from the launch until it has the tokens, then those of each kernel. `--dry-run`
runs tiny cases on a CPU, with Triton's interpreter.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p": {"top_p": 0.9},
    "top_p+top_k": {"top_p": 0.9, "top_k": 20},
    "logprobs": {"top_logprobs": 5},
}
SHAPES = [(128_256, 1), (128_256, 64), (128_256, 256), (262_144, 1), (262_144, 256), (32_000, 64)]
SPREADS = {"flat": 1.2, "peaked": 4.0}
"""Standard deviations of the logits: of random weights, and about those of a trained model."""


def main(words: list[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args(words)
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    device = torch.device("cpu" if arguments.dry_run else "cuda:0")
    shapes = [(700, 2)] if arguments.dry_run else SHAPES
    cases = [
        (name, vocab_size, batch, spread, kind)
        for name in ("triton", "pytorch")
        for vocab_size, batch in shapes
        for spread in SPREADS
        for kind in KINDS
    ]
    with arguments.out.open("w", encoding="utf-8") as out:
        for profiles in (False, True):  # the profiler takes seconds to start
            for case in cases:
                if time.monotonic() - started > arguments.seconds:
                    return 0
                result = measure(*case, device=device, profiles=profiles)
                out.write(json.dumps(result) + "\n")
                out.flush()
                print(line(result), flush=True)
    return 0


def measure(
    name: str,
    vocab_size: int,
    batch: int,
    spread: str,
    kind: str,
    *,
    device: torch.device,
    profiles: bool,
) -> dict[str, Any]:
    """Time one sampler for one kind of rows, or its kernels if `profiles`."""
    from stonechat_models.sampling.sampler import Sampler
    from stonechat_models.sampling.state import SamplingState
    from stonechat_models.sampling.triton.sampler import TritonSampler
    from stonechat_models.types import SamplingParams

    result: dict[str, Any] = {
        "sampler": name, "vocab": vocab_size, "batch": batch, "spread": spread, "kind": kind,
    }  # fmt: skip
    sampler = (TritonSampler if name == "triton" else Sampler)(vocab_size, device)
    states = [SamplingState(SamplingParams(**KINDS[kind]), i, 0, []) for i in range(batch)]
    logits = torch.randn(batch, vocab_size, device=device) * SPREADS[spread]

    def run() -> None:
        sampler.launch(logits, states).read()

    try:
        run()
        if device.type == "cuda":
            result |= profile(run) if profiles else time_passes(run)
    except Exception as error:
        result["error"] = repr(error)[:300]
    return result


def time_passes(run: Callable[[], None], count: int = 20) -> dict[str, Any]:
    """Return microseconds of a pass until its tokens are on the host."""
    passes = []
    for _ in range(count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        passes.append((time.perf_counter() - start) * 1e6)
    return {"pass_us": round(sorted(passes)[count // 2], 1)}


def profile(run: Callable[[], None], count: int = 5) -> dict[str, Any]:
    """Return microseconds of the device and of each kernel in a pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            run()
        torch.cuda.synchronize()
    kernels = {
        event.key[:40]: round(event.self_device_time_total / count, 2)
        for event in profiler.key_averages()
        if event.self_device_time_total
    }
    largest = dict(sorted(kernels.items(), key=lambda item: -item[1])[:8])
    return {"device_us": round(sum(kernels.values()), 1), "kernels": largest}


def line(result: dict[str, Any]) -> str:
    """One line of the table."""
    name = "{sampler:8} {vocab:7} x {batch:3} {spread:7} {kind:12}".format(**result)
    if "error" in result:
        return f"{name} {result['error']}"
    if "pass_us" in result:
        return f"{name} {result['pass_us']:8.1f} us a pass"
    kernels = result.get("kernels", {}).items()
    parts = "  ".join(f"{key.removesuffix('_kernel')} {us}" for key, us in kernels)
    return f"{name} device {result.get('device_us', 0.0):8.1f} us: {parts}"


if __name__ == "__main__":
    raise SystemExit(main())
