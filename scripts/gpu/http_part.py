"""The part of `bench.py` that runs the same load on an engine in process and on the server."""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from engines import timed_phases
from http_load import measure_over_http, save_model
from measure import Load
from model_part import REQUESTS_A_STREAM, mixed_load
from sections import Section, say
from shapes import Shape, build_module

from stonechat_models.config import EngineConfig
from stonechat_models.runtime.build import build_engine


def measure_server(section: Section, shape: Shape) -> None:
    arguments = section.arguments
    with tempfile.TemporaryDirectory(prefix="stonechat-bench-") as name:
        folder = Path(name)
        module = build_module(shape, section.device, section.dtype)
        save_model(module, folder)
        del module
        section.free()
        section.keep(
            streams=arguments.streams,
            input_tokens=arguments.http_tokens,
            output_tokens=arguments.http_tokens,
        )
        _in_process(section, folder)
        section.free()
        servers = {"--engine-process": section.results}
        if arguments.one_process:
            section.keep(in_one_process={})
            servers["--no-engine-process"] = section.results["in_one_process"]
        for where, results in servers.items():
            results |= section.attempt(partial(_over_http, section, folder, where, results)) or {}
            section.keep()


def _over_http(section: Section, folder: Path, where: str, results: dict[str, Any]) -> None:
    """Add to `results`, a part of the section's, as the figures come.

    `where`: the flag that says in which process the engine runs.
    """
    arguments = section.arguments

    def note(**figures: Any) -> None:
        results.update(figures)
        section.keep()

    measure_over_http(
        folder,
        [where, *_serve_flags(arguments)],
        streams=arguments.streams,
        num_requests=REQUESTS_A_STREAM * arguments.streams,
        num_tokens=arguments.http_tokens,
        timeout=max(10.0, section.seconds_left),
        note=note,
    )


def _in_process(section: Section, folder: Path) -> None:
    arguments = section.arguments
    config = EngineConfig(
        model=str(folder),
        device=arguments.device,
        backend="transformers",
        attention_backend=arguments.attention,
        quantize=arguments.quantize or "auto",
        eager=arguments.eager,
        kv_cache_bytes=arguments.kv_bytes,
        max_model_len=_max_model_len(arguments),
    )
    started = time.perf_counter()
    with timed_phases() as phases:
        engine, _ = build_engine(config, say)
    seconds = time.perf_counter() - started
    section.keep(seconds_to_ready=seconds, seconds_by_phase=phases)
    say(f"ready in {seconds:.1f} s: { {name: round(s, 2) for name, s in phases.items()} }")
    mixed = mixed_load(section, Load(engine, section.device))  # type: ignore[arg-type]
    section.keep(in_process=mixed, in_process_tokens_per_second=mixed["tokens_per_second"])


def _serve_flags(arguments: argparse.Namespace) -> list[str]:
    flags = ["--device", arguments.device, "--backend", "transformers"]
    flags += ["--attention-backend", arguments.attention]
    flags += ["--max-model-len", str(_max_model_len(arguments))]
    if arguments.eager:
        flags += ["--eager"]
    if arguments.quantize is not None:
        flags += ["--quantize", arguments.quantize]
    if arguments.kv_bytes is not None:
        flags += ["--kv-cache-size", str(arguments.kv_bytes)]
    return flags


def _max_model_len(arguments: argparse.Namespace) -> int:
    """Return a context length that also fits the prompts that calibrate the load generator."""
    return max(256, 4 * int(arguments.http_tokens))
