"""Time steps with prompts in them, with and without CUDA graphs.

    python scripts/gpu/mixed_steps.py --seconds 30 --out mixed_steps.jsonl

A step has sequences that decode, far in their contexts, and one prompt. Each result is a line of
JSON, written as soon as it is there: milliseconds of a step on the device (steps back to back), and
of the host to launch one. `--dry-run` runs a tiny model on a CPU, without graphs.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

MODELS = ["llama-3.2-1b", "llama-3.1-8b"]
STEPS = [  # sequences that decode, their contexts, tokens of the prompt
    (0, 0, 12),
    (0, 0, 100),
    (0, 0, 250),
    (0, 0, 500),
    (3, 512, 40),
    (3, 16_000, 100),
    (60, 512, 60),
    (60, 512, 190),
    (60, 512, 300),
    (60, 512, 440),
    (250, 512, 100),
    (250, 512, 250),
]
REPEATS = 12
HOST_REPEATS = 3
"""Few, so that the launches of all of them fit in the device's queue."""


def main(words: list[str] | None = None) -> int:
    ends = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # says what the graphs take
    ends += arguments.seconds
    with arguments.out.open("w", encoding="utf-8") as out:
        for name in ["tiny"] if arguments.dry_run else arguments.models:
            model = start(name, torch.device("cpu" if arguments.dry_run else "cuda:0"))
            for step in STEPS:
                if time.monotonic() > ends:
                    return 0
                result = {"model": name, **measure(model, *step)}
                out.write(json.dumps(result) + "\n")
                out.flush()
                print(line(result), flush=True)
            del model
            if not arguments.dry_run:
                torch.cuda.empty_cache()
    return 0


def start(name: str, device: torch.device) -> Any:
    """Build a model with random weights, and its graphs."""
    from engines import build
    from shapes import SHAPES, build_module

    from stonechat_models.config import EngineConfig

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = EngineConfig(
        model=name,
        device=str(device),
        backend="transformers",
        max_num_seqs=256,
        kv_cache_bytes=(1 << 26) if device.type == "cpu" else (20 << 30),
    )
    with torch.inference_mode():
        module = build_module(SHAPES[name], device, dtype)
    return build(module, name, config, device, print).model


@torch.inference_mode()
def measure(model: Any, num_decodes: int, context: int, num_prompt: int) -> dict[str, Any]:
    """Time one step, in a graph if there is one for it, and without."""
    from stonechat_models.backends.transformers.verify import random_batch

    info = model.info
    num_blocks = info.num_blocks - -(-num_prompt // info.block_size)
    room = num_blocks // max(1, num_decodes) * info.block_size
    context = min(context, room, info.max_model_len)
    lengths = [(1, context)] * num_decodes + [(num_prompt, num_prompt)]
    batch = random_batch(lengths, info.block_size, vocab_size=info.vocab_size)
    batch = batch.to(torch.device(info.device))
    result = {
        "decodes": num_decodes,
        "context": context,
        "prompt": num_prompt,
        "tokens": batch.num_tokens,
        "without": times(model.model if hasattr(model, "model") else model, batch),
    }
    shape = model._shape_of(batch) if hasattr(model, "_shape_of") else None
    if shape is not None:
        result["shape"] = [shape.tokens, shape.seqs, shape.rows]
        result["graph"] = times(model, batch)
    return result


def times(model: Any, batch: Any) -> dict[str, float]:
    """Milliseconds of a step on the device, and of the host to launch it."""
    is_cuda = batch.token_ids.device.type == "cuda"
    for _ in range(2):
        model.forward(batch)
    if is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for i in range(REPEATS):
        model.forward(batch)
        if i + 1 == HOST_REPEATS:
            host = time.perf_counter() - started
    if is_cuda:
        torch.cuda.synchronize()
    both = time.perf_counter() - started
    return {"step": 1e3 * both / REPEATS, "host": 1e3 * host / HOST_REPEATS}


def line(result: dict[str, Any]) -> str:
    parts = [f"{result['model']}: {result['decodes']} at {result['context']} + a prompt of"]
    parts.append(f"{result['prompt']}: without {result['without']['step']:.2f} ms a step")
    parts.append(f"(host {result['without']['host']:.2f})")
    if "graph" in result:
        parts.append(f"in a graph of {result['shape']} {result['graph']['step']:.2f}")
        parts.append(f"(host {result['graph']['host']:.2f})")
    return " ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
