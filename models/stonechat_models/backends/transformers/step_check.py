"""The check at load of models that keep a state: steps against one whole forward pass.

Two sequences are computed in steps, as the engine does: both prompts, then some tokens decoded
together. Then one prompt is computed in parts. If only the parts give other logits, the engine
computes each prompt of this model in one piece.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from stonechat_models.backends.base import CausalModel
from stonechat_models.backends.transformers.verify import logits_error, packed_batch, whole_pass
from stonechat_models.errors import EngineError, UnsupportedModelError

PROMPT_LENGTHS = (69, 6)
"""In tokens. Linear attention computes in parts of 64 tokens."""
NUM_DECODED = 3
PARTS = (17, 1, 48, 3)
"""How the longer prompt is split."""


class _Sequence:
    """A sequence of the check, with a slot and blocks of its own."""

    def __init__(self, slot: int, token_ids: torch.Tensor, num_blocks: int) -> None:
        self.slot = slot
        self.token_ids = token_ids
        self.blocks = torch.arange(slot * num_blocks, (slot + 1) * num_blocks, dtype=torch.int32)
        self.num_computed = 0


@torch.inference_mode()
def check_steps(
    model: CausalModel, module: torch.nn.Module, device: torch.device, tolerance: float
) -> bool:
    """Return whether parts of a prompt give the same logits as the whole.

    `module` computes the expected logits. `tolerance` is in standard deviations of the logits.
    Raises `UnsupportedModelError` if the steps of two sequences give other logits.
    """
    block_size, vocab_size = model.info.block_size, model.info.vocab_size
    num_blocks = -(-(PROMPT_LENGTHS[0] + NUM_DECODED) // block_size)
    generator = torch.Generator().manual_seed(0)
    texts = [
        torch.randint(vocab_size, (n + NUM_DECODED,), generator=generator) for n in PROMPT_LENGTHS
    ]
    info, implementation = model.info, module.config._attn_implementation  # type: ignore
    try:
        module.set_attn_implementation("eager")  # type: ignore[operator]
        expected = [whole_pass(module, ids.to(device)) for ids in texts]
        module.set_attn_implementation(implementation)  # type: ignore[operator]
        model.info = replace(info, num_state_slots=len(texts))
        model.allocate_kv_cache(num_blocks * len(texts), block_size)
        sequences = [_Sequence(i, ids, num_blocks) for i, ids in enumerate(texts)]
        actual = [
            _step(model, list(zip(sequences, PROMPT_LENGTHS, strict=True)), device),
            *(
                _step(model, [(s, 1) for s in reversed(sequences)], device).flip(0)
                for _ in range(NUM_DECODED)
            ),
        ]
        worst = max(
            _error(expected[i][-NUM_DECODED - 1 :], torch.stack([rows[i] for rows in actual]))
            for i in range(len(texts))
        )
        if worst > tolerance:
            if not _is_causal(module, texts[0].to(device), tolerance):
                raise UnsupportedModelError(
                    "the model is an encoder: its tokens attend to later ones, so it generates none"
                )
            raise UnsupportedModelError(
                "computing two sequences in steps gives other logits than whole forward passes "
                f"(off by {worst:.2g} standard deviations)"
            )
        return _parts_error(model, texts[0], num_blocks, expected[0], device) <= tolerance
    except EngineError:
        raise
    except Exception as error:
        raise UnsupportedModelError(f"the check of the model's steps fails: {error}") from error
    finally:
        model.info = info


def _parts_error(
    model: CausalModel,
    token_ids: torch.Tensor,
    num_blocks: int,
    expected: torch.Tensor,
    device: torch.device,
) -> float:
    """The error of the logits if the prompt is computed in parts; inf if it cannot be."""
    sequence = _Sequence(0, token_ids, num_blocks)
    positions = torch.tensor(list(accumulate(PARTS))) - 1
    try:
        rows = [_step(model, [(sequence, n)], device)[0] for n in PARTS]
    except Exception:  # some caches only take a whole prompt
        return float("inf")
    return _error(expected[positions], torch.stack(rows))


def _is_causal(module: torch.nn.Module, token_ids: torch.Tensor, tolerance: float) -> bool:
    """Whether the logits of a text's first half do not depend on the second half."""
    half = len(token_ids) // 2
    whole, part = whole_pass(module, token_ids), whole_pass(module, token_ids[:half])
    return _error(part, whole[:half]) <= tolerance


def _error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float(logits_error(expected, actual.to(expected.device)).max())


def _step(
    model: CausalModel, items: Sequence[tuple[_Sequence, int]], device: torch.device
) -> torch.Tensor:
    """Compute the next tokens of each sequence. Returns the logits [N, V] of each one's last."""
    parts = []
    for sequence, num_tokens in items:
        first, end = sequence.num_computed, sequence.num_computed + num_tokens
        parts.append((sequence.token_ids[first:end], first, sequence.blocks))
        sequence.num_computed = end
    batch = packed_batch(parts, model.info.block_size, [s.slot for s, _ in items])
    logits: torch.Tensor = model.forward(batch.to(device))
    return logits
