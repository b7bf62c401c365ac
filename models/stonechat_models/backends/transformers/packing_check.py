"""The packing check at load: packed sequences against each one alone, with the model's attention.

State that a model keeps outside its attention (a recurrent state, a convolution) leaks from one
packed sequence into the next. It changes the logits of the second sequence, but not of the first.
In half precision, rounding can also make a router choose other experts at single tokens. If that
leaves the result unclear, the check is repeated in float32 on a small copy: the first layers, with
random weights.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.declared import has_chunks, short_chunks
from stonechat_models.backends.transformers.attention.interface import (
    ATTENTION_NAME,
    PagedContext,
    ProbeContext,
    register_attention,
)
from stonechat_models.backends.transformers.verify import (
    logits_error,
    logits_tolerance,
    random_prompts,
    whole_pass,
)
from stonechat_models.errors import EngineError, UnsupportedModelError

LENGTHS = [7, 4]
"""Lengths of the packed sequences, in tokens."""
LEAK_RATIO = 30.0
"""The second sequence's median difference may be at most this many times the first's. Rounding
affects both alike."""
COPY_VOCAB_SIZE = 256


def check_packing(module: torch.nn.Module, device: torch.device, vocab_size: int) -> ProbeContext:
    """Check that packing does not change the logits. Returns the probe.

    The probe has recorded the model's layers. Raises `UnsupportedModelError` with the reason.
    Sets the paged attention function in `module`.
    """
    dtype = next(module.parameters()).dtype
    tolerance = logits_tolerance(dtype)
    with short_chunks(module):
        probe, differences = _compare(module, device, vocab_size)
        if dtype is not torch.float32 and _is_unclear(differences, tolerance):
            tolerance = logits_tolerance(torch.float32)
            _, differences = _compare(small_copy(module), torch.device("cpu"), COPY_VOCAB_SIZE)
    if has_chunks(module):  # this probe has the short ones
        with torch.inference_mode():
            probe, _ = probe_layers(module, random_prompts(LENGTHS, vocab_size).to(device))
    check_window(module, probe)
    worst = max(float(d.max()) for d in differences)
    if worst > tolerance or _leaks(*differences):
        raise UnsupportedModelError(
            "a packed forward pass gives other logits than each sequence alone (off by "
            f"{worst:.2g} standard deviations): the model keeps state outside its attention"
        )
    return probe


def check_window(module: torch.nn.Module, probe: ProbeContext) -> None:
    """Refuse a sliding window or chunks that only the model's mask has: no mask is built here.

    The sequences of the check are too short to show a window.
    """
    if has_chunks(module) and all(kind.spec.chunk_size is None for kind in probe.kinds):
        raise UnsupportedModelError(
            "the chunks of its attention are in the mask alone, and no mask is made here"
        )
    config: Any = module.config.get_text_config()  # type: ignore[operator, union-attr]
    window = getattr(config, "sliding_window", None)
    length = getattr(config, "max_position_embeddings", None) or 0
    if not isinstance(window, int) or not 0 < window < length:
        return
    types = getattr(config, "layer_types", None)
    if types and "sliding_attention" not in types:
        return
    if all(kind.spec.sliding_window is None for kind in probe.kinds):
        raise UnsupportedModelError("only a mask holds the model's sliding window")


def _is_unclear(differences: list[torch.Tensor], tolerance: float) -> bool:
    """True if single positions are off, but the medians of both sequences are not."""
    worst = max(float(d.max()) for d in differences)
    typical = max(float(d.median()) for d in differences)
    return typical <= tolerance < worst


def _leaks(first: torch.Tensor, second: torch.Tensor) -> bool:
    return float(second.median()) > LEAK_RATIO * max(float(first.median()), 1e-7)


def small_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A float32 model of the same class with random weights and one layer or more of every type."""
    whole: Any = copy.deepcopy(module.config)
    config: Any = whole.get_text_config()
    types: Sequence[str] = getattr(config, "layer_types", None) or ()
    num_layers = max(2, *(types.index(kind) + 1 for kind in set(types)), 2)
    config.num_hidden_layers = min(num_layers, config.num_hidden_layers)
    if types:
        config.layer_types = list(types[: config.num_hidden_layers])
    config.vocab_size = COPY_VOCAB_SIZE
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    config.dtype = torch.float32
    try:
        if config is not whole:  # of a model for images and text, only the text part is checked
            copied: torch.nn.Module = AutoModelForCausalLM.from_config(config).float().eval()
            return copied
        return type(module)(config).float().eval()
    except Exception as error:
        raise UnsupportedModelError(f"the packing check cannot copy the model: {error}") from error


@torch.inference_mode()
def _compare(
    module: torch.nn.Module, device: torch.device, vocab_size: int
) -> tuple[ProbeContext, list[torch.Tensor]]:
    """Returns the probe, and per sequence each position's largest difference of logits.

    The unit is the standard deviation of the logits.
    """
    batch = random_prompts(LENGTHS, vocab_size).to(device)
    try:
        module.set_attn_implementation("eager")  # type: ignore[operator]
        sequences = torch.split(batch.token_ids, LENGTHS)
        expected = torch.cat([whole_pass(module, ids) for ids in sequences])
        probe, actual = probe_layers(module, batch)
    except EngineError:
        raise
    except Exception as error:
        raise UnsupportedModelError(f"the packing check's forward pass fails: {error}") from error
    return probe, list(torch.split(logits_error(expected, actual.float()), LENGTHS))


def probe_layers(module: torch.nn.Module, batch: ForwardBatch) -> tuple[ProbeContext, torch.Tensor]:
    """Run the step `batch` of whole prompts without a KV cache.

    Sets the paged attention function in `module`. Returns what the probe recorded of its layers,
    and the logits [T, V]. Raises `UnsupportedModelError` if the model does not call the function.
    """
    register_attention()
    module.set_attn_implementation(ATTENTION_NAME)  # type: ignore[operator]
    probe = ProbeContext(batch.query_start_list)
    logits = packed_forward(module, batch.token_ids, batch.positions, probe)
    if not probe.shapes:
        raise UnsupportedModelError("the model never calls the registered attention function")
    return probe, logits


def packed_forward(
    module: torch.nn.Module,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    context: PagedContext | ProbeContext,
    logits_to_keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run `module` on packed tokens int64[T]. Returns logits [T, V].

    `positions`: int64[T], or int64[3, T] for a model with rotary positions in three dimensions.

    With `logits_to_keep` int64[R], it returns only the logits [R, V] of these rows.
    """
    extra: dict[str, Any] = {}
    if logits_to_keep is not None:
        extra["logits_to_keep"] = logits_to_keep
    output = module(
        input_ids=token_ids.unsqueeze(0),
        position_ids=positions.unsqueeze(-2),
        use_cache=False,
        stonechat=context,
        **extra,
    )
    logits: torch.Tensor = output.logits[0]
    return logits
