"""Calculates the distribution that a row should be drawn from, by definition, in float64 numpy."""

import numpy as np
from numpy.typing import NDArray

from stonechat_models.sampling.state import SamplingState

Array = NDArray[np.float64]


def edited(logits: Array, state: SamplingState) -> Array:
    params, z = state.params, logits.astype(np.float64).copy()
    for token, bias in params.logit_bias.items():
        z[token] += bias
    for token in range(len(z)):
        count = state.output_counts.get(token, 0)
        z[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
    for token in {*state.prompt_token_ids, *state.output_counts}:
        penalty = params.repetition_penalty
        z[token] = z[token] / penalty if z[token] > 0 else z[token] * penalty
    z[[token for token in state.suppressed_ids if token < len(z)]] = -np.inf
    return z


def keep_heaviest(p: Array, enough: float, amounts: Array) -> Array:
    """Keep the fewest most likely tokens whose amounts reach `enough`, and all ties with the last.

    `p` has one probability per token. The others become 0.
    """
    order = np.argsort(-p, kind="stable")
    totals = np.cumsum(amounts[order])
    last = order[min(int(np.sum(totals < enough)), len(p) - 1)]
    return np.where(p >= p[last], p, 0.0)


def distribution(logits: Array, state: SamplingState) -> Array:
    params = state.params
    z = edited(logits, state) / params.temperature
    p = np.exp(z - z.max())
    if params.top_k:
        p = keep_heaviest(p, params.top_k, np.ones_like(p))
    p[p < params.min_p * p.max()] = 0.0
    if params.top_p < 1.0:
        p = keep_heaviest(p, params.top_p * p.sum(), p)
    return p / p.sum()


def log_softmax(logits: Array) -> Array:
    z = logits.astype(np.float64)
    shifted = z - z.max()
    result: Array = shifted - np.log(np.exp(shifted).sum())
    return result
