"""What all samplers share of a row, without tensors."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stonechat_models.errors import GrammarError
from stonechat_models.sampling.state import NOT_FINITE, SamplingState
from stonechat_models.types import GRAMMAR_FAILED, SamplingParams, TokenLogprobs

LEAST_TEMPERATURE = 1e-30

Errors = dict[int, str]
"""By row, why it cannot be edited."""


def group_index(params: SamplingParams) -> int:
    """Return how a row chooses: 0 greedily, 1 from all tokens, 2 from those that filters leave."""
    if params.is_greedy:
        return 0
    return 2 if params.top_k or params.min_p > 0.0 or params.top_p < 1.0 else 1


def fill_masks(
    masks: npt.NDArray[np.int32], states: Sequence[SamplingState], rows: list[int]
) -> tuple[list[int], Errors]:
    """Fill int32[len(rows), words], zeros so far, with the bitmasks of the rows' constraints.

    Return the rows whose constraint forbids tokens, in the order of their masks, and an error
    message for each row whose constraint fails.
    """
    masked_rows: list[int] = []
    errors: Errors = {}
    for row in rows:
        constraint = states[row].constraint
        assert constraint is not None
        try:
            if constraint.fill_bitmask(masks[len(masked_rows)]):
                masked_rows.append(row)
        except GrammarError as error:
            errors[row] = f"{GRAMMAR_FAILED}{error}"
        except Exception as error:  # an error of one constraint fails its own row only
            errors[row] = f"the constraint failed: {error}"
    return masked_rows, errors


def log_norm(peak: float, mass: float) -> float:
    """Return what to subtract from a row's logits; NaN if the row is not finite."""
    return peak + math.log(mass) if mass > 0 else math.nan


def token_logprobs(
    token_id: int, logit: float, norm: float, best: Sequence[tuple[float, int]], rank: int = 0
) -> TokenLogprobs:
    """Return the entry of a token, with its row's `log_norm` and `best` of `top_lists`."""
    return TokenLogprobs(
        token_id=token_id,
        logprob=logit - norm,
        top_ids=tuple([token for _, token in best]),
        top_logprobs=tuple([-value - norm for value, _ in best]),
        rank=rank,
    )


def flag_rows(
    peaks: list[float], logprobs: list[TokenLogprobs | None], errors: dict[int, str]
) -> None:
    """Add a message for each row whose edited or raw logits do not define a distribution."""
    for row, (peak, entry) in enumerate(zip(peaks, logprobs, strict=True)):
        if peak == -math.inf:
            errors.setdefault(row, "no token is allowed")
        elif not math.isfinite(peak) or (entry is not None and math.isnan(entry.logprob)):
            errors.setdefault(row, NOT_FINITE)
