"""Measure what LoRA adapters cost a decode step, and a prompt (PyTorch path, no HTTP).

Writes random adapters of all linear layers but the head, and times steps of one engine that serves
them: without an adapter, with one for one sequence, with one for all, and with another one for each
sequence. The kinds of steps take turns, and the median counts. The same steps of an engine without
`--lora` come first. Example:

    python scripts/bench/lora.py --dtype float32 --adapters 8 --rank 16
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from stonechat_models import EngineConfig, GenerateRequest, SamplingParams
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.engine.engine import Engine
from stonechat_models.runtime.build import build_engine

PROMPT_TOKENS = 32
PREFILL_TOKENS = 256
WARM_STEPS = 16


def main() -> None:
    arguments = parse_arguments()
    config = EngineConfig(
        model=arguments.model,
        backend="transformers",
        dtype=arguments.dtype,
        device=arguments.device,
        quantize=arguments.quantize,
        threads=arguments.threads,
        prefix_caching=False,
    )
    engine = build(config)
    num_seqs, num_steps = arguments.sequences, arguments.steps
    none = [""] * num_seqs
    decode(engine, none, WARM_STEPS)
    print(f"{'without --lora':34s} {milliseconds(decode(engine, none, num_steps))}")
    with tempfile.TemporaryDirectory() as folder:
        names = write_adapters(engine, Path(folder), arguments.adapters, arguments.rank)
        del engine
        engine = build(replace(config, lora=tuple(f"{n}={folder}/{n}" for n in names)))
    sizes = [adapter.num_bytes for adapter in engine.model.info.adapters]
    print(f"{len(names)} adapters of {sizes[0] / 1e6:.1f} MB each", file=sys.stderr)
    mixes = {
        "no sequence has an adapter": none,
        "one of them has one": [names[0], *none[1:]],
        "all have the same": [names[0]] * num_seqs,
        "each has another": [names[i % len(names)] for i in range(num_seqs)],
    }
    times: dict[str, list[float]] = {kind: [] for kind in mixes}
    prefills: dict[str, list[float]] = {kind: [] for kind in mixes}
    for mix in mixes.values():
        decode(engine, mix, 2)
    for _ in range(arguments.rounds):
        for kind, mix in mixes.items():
            times[kind] += decode(engine, mix, num_steps)
            prefills[kind] += [prefill(engine, mix[0])]
    for kind in mixes:
        print(f"{kind:34s} {milliseconds(times[kind])}")
    for label, kind in (("a prompt without an adapter", "no sequence has an adapter"),
                        ("a prompt with one", "all have the same")):  # fmt: skip
        print(f"{label:34s} {milliseconds(prefills[kind])}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quantize", default="auto", choices=["auto", "none", "int8", "int4"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    return parser.parse_args()


def build(config: EngineConfig) -> Engine:
    engine, _ = build_engine(config, lambda line: print(line, file=sys.stderr))
    assert isinstance(engine, Engine)
    return engine


def write_adapters(engine: Engine, folder: Path, count: int, rank: int) -> list[str]:
    """Write adapters of all linear layers but the head. Return their names."""
    model = engine.model
    assert isinstance(model, TransformersModel)
    layers = {
        name: (part.in_features, part.out_features)
        for name, part in model.module.named_modules()
        if hasattr(part, "in_features") and name != "lm_head"
    }
    names = [f"adapter-{i}" for i in range(count)]
    for i, name in enumerate(names):
        generator = torch.Generator().manual_seed(i)
        tensors: dict[str, torch.Tensor] = {}
        for layer, (num_inputs, num_outputs) in layers.items():
            a = torch.randn(rank, num_inputs, generator=generator) * num_inputs**-0.5
            b = torch.randn(num_outputs, rank, generator=generator) * 0.01
            prefix = f"base_model.model.{layer}.lora_"
            tensors |= {f"{prefix}A.weight": a, f"{prefix}B.weight": b}
        (folder / name).mkdir()
        save_file(tensors, folder / name / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
        (folder / name / "adapter_config.json").write_text(json.dumps(settings))
    return names


def decode(engine: Engine, adapters: list[str], num_steps: int) -> list[float]:
    """Return the seconds of each decode step of one sequence for each of `adapters`."""
    for i, adapter in enumerate(adapters):
        add(engine, i, PROMPT_TOKENS, num_steps + 1, adapter)
    engine.step()
    times = []
    while engine.has_work:
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started)
    return times


def prefill(engine: Engine, adapter: str) -> float:
    add(engine, 0, PREFILL_TOKENS, 1, adapter)
    started = time.perf_counter()
    engine.step()
    return time.perf_counter() - started


def add(engine: Engine, index: int, length: int, max_tokens: int, adapter: str) -> None:
    generator = torch.Generator().manual_seed(index)
    prompt = torch.randint(1000, 40000, (length,), generator=generator).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    engine.add(
        GenerateRequest(
            request_id=str(index), prompt_token_ids=prompt, params=params, adapter=adapter
        )
    )


def milliseconds(times: list[float]) -> str:
    low, *_, high = statistics.quantiles(times, n=10)
    return f"{1000 * statistics.median(times):7.1f} ms  ({1000 * low:.1f} to {1000 * high:.1f})"


if __name__ == "__main__":
    main()
