"""Engines on models with random weights, loaded as the server loads a model of a folder."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from stonechat_models.backends.transformers import kinds, step_check
from stonechat_models.backends.transformers.loading import load
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.checkpoint.support import context_length
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.runtime.assemble import assemble_engine

TRANSFORMERS = "stonechat_models.backends.transformers."
PHASES = {
    "read": f"{TRANSFORMERS}loading.load.load_module",
    "check packing": f"{TRANSFORMERS}loading.load.check_packing",
    "fuse": f"{TRANSFORMERS}fused.replace.fuse_modules",
    "check states": f"{TRANSFORMERS}step_check.check_steps",
    "quantise": f"{TRANSFORMERS}loading.quantize.quantize_checked",
    "check attention": f"{TRANSFORMERS}loading.load._choose_checked_attention",
    "compile codes": f"{TRANSFORMERS}loading.load.compile_products",
    "choose products": f"{TRANSFORMERS}fused.product_choice.choose_products",
    "choose coded products": f"{TRANSFORMERS}fused.coded_choice.choose_coded_products",
    "choose tiles": f"{TRANSFORMERS}attention.tile_choice.choose_decode_tiles",
    "check sampler": "stonechat_models.sampling.choose.choose_sampler",
    "largest step": f"{TRANSFORMERS}cuda.memory.step_memory",
    "graphs": f"{TRANSFORMERS}cuda.memory.with_cuda_graphs",
}
"""Functions that a start calls, in the order of their calls."""


def build(
    module: Any, name: str, config: EngineConfig, device: torch.device, say: Callable[[str], None]
) -> Engine:
    """Build the engine of a module, which it may change. Nothing ends a text."""
    raw = json.loads(module.config.to_json_string(use_diff=False))
    raw |= {"architectures": [type(module).__name__], "dtype": str(module.dtype).split(".")[-1]}
    files = ModelFiles(name, Path(), parse_config(raw, name), None, ())

    def loaded(*arguments: object, **settings: object) -> Any:
        return module

    with (
        replaced(load, "load_module", loaded),
        replaced(load, "weights_hash", lambda _: "random"),
        replaced(kinds, "check_steps", named(step_check.check_steps, say)),
    ):
        model = load.load_transformers_model(files, config, device, say)
    return assemble_engine(
        model,
        config,
        device,
        max_model_len=context_length(files.config, config.max_model_len),
        eos_token_ids=frozenset(),
        progress=say,
    )


def named(check: Callable[..., bool], say: Callable[[str], None]) -> Callable[..., bool]:
    """A check of recurrent states that only names what is off: rounding may carry random weights
    further than trained ones."""

    def checked(*arguments: Any) -> bool:
        try:
            return check(*arguments)
        except UnsupportedModelError as error:
            say(f"OFF: {error}")
            return True

    return checked


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Inside, the attribute has another value. An attribute that is not there stays so."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def timed_phases() -> Iterator[dict[str, float]]:
    """Yield a dictionary that gets the seconds of each phase of a start."""
    seconds: dict[str, float] = {}
    undo = []
    for phase, path in PHASES.items():
        module_name, _, name = path.rpartition(".")
        owner = import_module(module_name)
        if hasattr(owner, name):
            undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, _timed(getattr(owner, name), phase, seconds))
    try:
        yield seconds
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def _timed(function: Callable[..., Any], phase: str, seconds: dict[str, float]) -> Any:
    def timed(*arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **settings)
        finally:
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started

    return timed
