"""The part of `bench.py` that times one model: decoding, prefill and a mixed load."""

import contextlib
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from checks import Expected, expected_logits, logits_of, verdict
from engines import build, replaced, timed_phases
from measure import Load
from sections import Section, say
from shapes import (
    Shape,
    attention_flops,
    build_module,
    matmul_parameters,
    put_codes,
    quantised_step_bytes,
    step_bytes,
)

from stonechat_models.backends.transformers.fused import coded_choice, product_choice
from stonechat_models.backends.transformers.fused import replace as fusing
from stonechat_models.backends.transformers.verify import TOLERANCE
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "top-k, top-p": {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
    "top-p": {"temperature": 1.0, "top_p": 0.9},
    "5 logprobs": {"temperature": 1.0, "top_logprobs": 5},
}
"""Sampling as OpenAI's clients and as Qwen's model cards have it, beside greedy decoding."""
REQUESTS_A_STREAM = 4
PROFILED = (("greedy", 1), ("greedy", 64), ("temperature 1", 256))
WARM_KV_BYTES = 1 << 30


def measure_model(section: Section, shape: Shape) -> None:
    started = time.perf_counter()
    module = build_module(shape, section.device, section.dtype)
    section.keep(seconds_to_build=time.perf_counter() - started)
    weights = step_bytes(module)
    flops = matmul_parameters(module), attention_flops(module)
    put_codes(shape, module, section.device, section.dtype)
    only_decode = section.arguments.only_decode
    expected: Any = {"skipped": "not asked for"}
    if not only_decode:
        expected = section.attempt(partial(expected_logits, shape, module, section.device))
    section.free()
    engine = _start(section, shape, module)
    if isinstance(expected, dict):
        section.keep(checks=expected)
    else:
        is_mixture = any(idle for _, idle in weights)
        section.keep(
            checks=section.attempt(partial(_checks, engine, section.device, expected, is_mixture))
        )
    if section.arguments.quantize or shape.codes:
        weights = [(quantised_step_bytes(module), 0.0)]
    load = Load(engine, section.device)
    modes = section.arguments.modes or list(MODES)
    for mode in modes[:2]:
        _decode(section, load, mode, weights)
    if not only_decode:
        section.keep(prefill=section.attempt(partial(_prefill, section, load, flops)))
        section.keep(mixed=section.attempt(partial(mixed_load, section, load)))
    for mode in modes[2:]:
        _decode(section, load, mode, weights)
    if not only_decode:
        _profile(section, load)


def warm_up(section: Section, shape: Shape) -> None:
    """Compile what `measure_model` runs, on one layer of the model."""
    small = replace(shape, arguments={**shape.arguments, "num_hidden_layers": 1})
    module = build_module(small, section.device, section.dtype)
    put_codes(shape, module, section.device, section.dtype)
    section.arguments.kv_bytes = section.arguments.kv_bytes or WARM_KV_BYTES
    load = Load(_start(section, small, module), section.device)
    for mode in MODES.values():
        for batch in section.arguments.batches:
            load.decode(min(batch, 64), 32, 1, **mode)
    load.prefill(2, section.arguments.context)
    load.closed_loop(4, 8, section.arguments.http_tokens, 8)


def _start(section: Section, shape: Shape, module: Any) -> Engine:
    arguments = section.arguments
    config = EngineConfig(
        model=shape.name,
        device=str(section.device),
        backend="transformers",
        attention_backend=arguments.attention,
        quantize=arguments.quantize or "auto",
        eager=arguments.eager,
        kv_cache_bytes=arguments.kv_bytes,
        max_num_seqs=max(arguments.batches),
    )
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if not arguments.fused:
            for name in ("fuse_modules", "fuse_hybrid_attention"):
                stack.enter_context(replaced(fusing, name, lambda module: {}))
        for name, tiles in _tiles(arguments.kernels).items():
            stack.enter_context(replaced(product_choice, name, tiles))
        if "coded" not in arguments.kernels:
            stack.enter_context(replaced(coded_choice, "CODED_TILES", {}))
        phases = stack.enter_context(timed_phases())
        engine = build(module, shape.name, config, section.device, say)
    info = engine.model.info
    section.keep(
        quantization=info.quantization,
        seconds_to_ready=time.perf_counter() - started,
        seconds_by_phase=phases,
        attention=info.attention_backend,
        in_graphs=bool(getattr(engine.model, "_graphs", None)),
        kv_capacity_tokens=info.kv_capacity_tokens,
        kv_bytes_per_token=info.kv_bytes_per_token,
        weight_bytes=info.weight_bytes,
    )
    say(f"ready in {section.results['seconds_to_ready']:.1f} s: {_rounded(phases)}")
    return engine


def _tiles(kernels: list[str]) -> dict[str, Any]:
    """The tiles that products are tried with, if only `kernels` may be used; see `KERNELS`."""
    tiles = {}
    for kind, name in (("few", "TILES"), ("some", "SOME_TILES")):
        chosen = getattr(product_choice, name) if kind in kernels else ()
        if "fetching" not in kernels:
            chosen = (replace(tile, num_lines=0) for tile in chosen)
        elif "plain" not in kernels:
            chosen = (tile for tile in chosen if tile.num_lines)
        tiles[name] = tuple(dict.fromkeys(chosen))
    return tiles


def _checks(
    engine: Engine, device: torch.device, expected: Expected, is_mixture: bool
) -> dict[str, Any]:
    tolerance = TOLERANCE["logits"].get(getattr(torch, engine.model.info.dtype), 0.25)
    actual = logits_of(engine.model, device)
    verdicts = verdict(expected, actual, tolerance, is_mixture)
    say(f"logits against the plain model: {verdicts}")
    return verdicts


def _decode(section: Section, load: Load, mode: str, weights: list[tuple[float, float]]) -> None:
    decode = section.results.get("decode", {})
    decode[mode] = {}
    for batch in section.arguments.batches:
        decode[mode][str(batch)] = section.attempt(
            partial(_decode_batch, section, load, mode, batch, weights)
        )
        section.keep(decode=decode)


def _decode_batch(
    section: Section, load: Load, mode: str, batch: int, weights: list[tuple[float, float]]
) -> dict[str, Any]:
    arguments = section.arguments
    times = load.decode(batch, arguments.context, arguments.steps, **MODES[mode])
    info = load.engine.model.info
    cached = batch * (times.context * info.kv_bytes_per_token + 2 * info.state_bytes)
    read = sum(size * (1 - idle**batch) for size, idle in weights)
    rate = batch / times.seconds
    say(f"{mode}, batch {batch}: {rate:.0f} tokens/s, {1e3 * times.seconds:.3f} ms a step")
    return {
        "tokens_per_second": rate,
        "milliseconds_per_step": 1e3 * times.seconds,
        "rounds_milliseconds": [1e3 * seconds for seconds in times.rounds],
        "host_milliseconds_per_step": 1e3 * times.host_seconds,
        "bytes_per_step": read + cached,
        "graphs_per_step": times.graphs_per_step,
    }


def _prefill(section: Section, load: Load, flops: tuple[float, float]) -> dict[str, Any]:
    length = 2 * section.arguments.context
    rates = sorted(load.prefill(8, length) for _ in range(3))
    rate = rates[1]
    say(f"prefill: {rate:.0f} tokens/s")
    products, attention = flops
    return {
        "tokens_per_second": rate,
        "all_tokens_per_second": rates,
        "flops_per_second": rate * (2 * products + attention * length),
    }


def mixed_load(section: Section, load: Load) -> dict[str, float]:
    """Run streams of requests in a closed loop. Most steps that it times have prompts in them."""
    streams, length = section.arguments.streams, section.arguments.http_tokens
    load.closed_loop(streams, streams, length, 4)
    result = load.closed_loop(streams, REQUESTS_A_STREAM * streams, length, length)
    say(f"{streams} streams in process: {_rounded(result)}")
    return result


def _profile(section: Section, load: Load) -> None:
    """Last, since a profiler may slow down what comes after it."""
    arguments = section.arguments
    profile = {}
    for mode, batch in PROFILED:
        if batch in arguments.batches and mode in (arguments.modes or MODES):
            name = f"{mode}, batch {batch}"
            profile[name] = section.attempt(
                partial(load.profile, batch, arguments.context, arguments.steps, **MODES[mode])
            )
            section.keep(profile=profile)
            for kernel in profile[name].get("kernels", [])[:12]:
                say(
                    f"{name}: {kernel['microseconds_added']:9.1f} µs {kernel['calls']:5.1f}x "
                    f"{kernel['name'][:80]} {kernel['grid']}"
                )


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 2) for name, number in numbers.items()}
