"""The check at load that adapters change their own sequences, all their layers, and no others."""

from collections.abc import Callable

import torch

from stonechat_models.backends.transformers.adapter_rows import StepRows
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.lora.linear import LoraLinear
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import probe_layers
from stonechat_models.backends.transformers.recurrent import PROBE_LENGTH, probe_states
from stonechat_models.backends.transformers.verify import (
    logits_error,
    logits_tolerance,
    random_prompts,
)
from stonechat_models.errors import EngineError, UnsupportedModelError

LENGTH = 3
"""Tokens of a sequence of the packed check."""


@torch.inference_mode()
def check_adapters(model: TransformersModel, rows: StepRows, num_adapters: int) -> None:
    """Run steps with all adapters. `rows` are those that the layers of `model` read.

    Raises `UnsupportedModelError` if such a step fails, if a layer is not called once with all
    tokens of it, if logits are not finite, or if a sequence without an adapter gets other logits
    beside adapters.
    """
    try:
        if model.info.keeps_state:  # such a model packs no prompts
            for adapter in range(num_adapters):
                rows.set_all(adapter)
                _refuse_other_calls(
                    model,
                    lambda: probe_states(model.module, ProbeContext([0, PROBE_LENGTH])),
                    PROBE_LENGTH,
                )
        else:
            _check_packed(model, rows, num_adapters)
    except EngineError:
        raise
    except Exception as error:
        raise UnsupportedModelError(f"a step with adapters fails: {error}") from error
    finally:
        rows.clear()


def _check_packed(model: TransformersModel, rows: StepRows, num_adapters: int) -> None:
    """Check a step with one sequence of each adapter, and a last one without."""
    batch = random_prompts([LENGTH] * (num_adapters + 1), model.info.vocab_size).to(model.device)
    rows.clear()
    _, expected = probe_layers(model.module, batch)
    batch.adapters = [*range(num_adapters), -1]
    rows.set(batch, head_reads_all=True)
    actual = expected

    def run() -> None:
        nonlocal actual
        _, actual = probe_layers(model.module, batch)

    _refuse_other_calls(model, run, batch.num_tokens)
    error = float(logits_error(expected[-LENGTH:].float(), actual[-LENGTH:].float()).max())
    tolerance = logits_tolerance(expected.dtype)
    if not torch.isfinite(actual).all() or error > tolerance:
        raise UnsupportedModelError(
            "a step with adapters gives logits that are not finite, or others to sequences without "
            f"an adapter (off by {error:.2g} standard deviations)"
        )


def _refuse_other_calls(
    model: TransformersModel, run: Callable[[], object], num_tokens: int
) -> None:
    """Raise `UnsupportedModelError` unless `run` calls each layer once with all tokens.

    The head may be called with fewer.
    """
    layers = {n: part for n, part in model.module.named_modules() if isinstance(part, LoraLinear)}
    calls: dict[str, list[int]] = {name: [] for name in layers}

    def record(name: str, x: torch.Tensor) -> None:
        calls[name].append(num_tokens if layers[name].is_head else x.shape[:-1].numel())

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    wrong = sorted(name for name, seen in calls.items() if seen != [num_tokens])
    if wrong:
        raise UnsupportedModelError(
            f"adapters change {', '.join(wrong[:3])}, which the model does not compute once for "
            "all tokens together (--adapter merges one adapter into the weights)"
        )
