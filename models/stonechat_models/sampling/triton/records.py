"""What the host writes for the sampler's Triton kernels, and what it reads: packed in one copy."""

from collections.abc import Sequence

import numpy as np
import torch

from stonechat_models.sampling.rows import LEAST_TEMPERATURE, group_index
from stonechat_models.sampling.state import SamplingState, uniform_variates
from stonechat_models.sampling.triton import rows as layout
from stonechat_models.sampling.triton.weights import NAN_KEY, NO_LOGIT
from stonechat_models.types import MAX_TOP_LOGPROBS

_DRAW, _SEARCH, _TALLY = 1, 2, 3
"""What a row needs beside its largest logit. Each includes those before."""


class Records:
    """int64[R + L, WORDS]: a record for each row, then one for each row with log-probabilities."""

    def __init__(
        self,
        states: Sequence[SamplingState],
        raw_rows: Sequence[int],
        sources: Sequence[int],
        vocab_size: int,
        num_chunks: int,
        *,
        pinned: bool = False,
    ) -> None:
        """`sources`: the rows of logits for `raw_rows`. `pinned`: in page-locked memory."""
        num_rows = len(states)
        shape = num_rows + len(raw_rows), layout.WORDS.value
        self.tensor = torch.zeros(shape, dtype=torch.int64, pin_memory=pinned)
        words = self.tensor.numpy()
        floats = words.view(np.float64)
        words[:, layout.BEST.value] = NO_LOGIT.value
        words[:num_rows, layout.SOURCE.value] = np.arange(num_rows)
        settings = [
            s.settings
            if s.settings is not None and s.settings[-1] == vocab_size
            else _settings(s, vocab_size, num_chunks)
            for s in states
        ]
        need = int(max((row[0] for row in settings), default=0))
        self.truncates, self.tallies = need >= _SEARCH, need >= _TALLY
        """Whether any row needs a search for its threshold, and whether tallies narrow it."""
        self.samples = need > 0 or len(raw_rows) > 0
        """Whether any row needs more than its largest logit."""
        if need:
            table = np.array(settings)
            words[:num_rows, layout.KIND.value] = table[:, 1]
            words[:num_rows, layout.TOP_K.value] = table[:, 2]
            first = layout.TEMPERATURE.value
            floats[:num_rows, first : first + 3] = table[:, 3:6]  # min_p and top_p too
            least = table[:, 4].astype(np.float32).view(np.int32)
            words[:num_rows, layout.THRESHOLD.value] = least  # the search replaces it
            counters = [(s.seed, s.choice_index, s.num_output_tokens) for s in states]
            floats[:num_rows, layout.VARIATE.value] = uniform_variates(counters)
        raw = words[num_rows:]
        if len(raw):
            raw[:, layout.KIND.value] = layout.RAW.value
            raw[:, layout.SOURCE.value] = sources
            raw[:, layout.TOKEN_ROW.value] = raw_rows
            raw[:, layout.NUM_TOPS.value] = num_tops(states, raw_rows)
            floats[num_rows:, layout.TEMPERATURE.value] = 1.0


def _settings(state: SamplingState, vocab_size: int, num_chunks: int) -> tuple[float, ...]:
    """Return what the row needs, its kind, top_k, temperature, min_p, top_p, and `vocab_size`."""
    params = state.params
    top_k = params.top_k if params.top_k < vocab_size else 0
    needs, kind = _DRAW, layout.PLAIN.value
    if not group_index(params):
        needs, kind = 0, layout.GREEDY.value
    elif top_k > 0 or params.top_p < 1.0:
        needs = _SEARCH if 0 < top_k <= num_chunks else _TALLY
        kind = layout.TRUNCATED.value
    temperature = max(params.temperature, LEAST_TEMPERATURE)
    state.settings = needs, kind, top_k, temperature, params.min_p, params.top_p, vocab_size
    return state.settings


def num_tops(states: Sequence[SamplingState], rows: Sequence[int]) -> list[int]:
    """Return how many of the most likely tokens each of `rows` wants."""
    return [states[row].params.top_logprobs or 0 for row in rows]


class Results:
    """What the kernels store for R rows of which L are raw, in one buffer of 8-byte words."""

    def __init__(
        self,
        num_rows: int,
        num_raw: int,
        device: torch.device | None = None,
        buffer: torch.Tensor | None = None,
    ) -> None:
        """`buffer`: a copy of that of other results of this size. Else it is made on `device`."""
        sizes = [num_rows] * 3 + [num_raw, num_raw * MAX_TOP_LOGPROBS]
        if buffer is None:
            buffer = torch.empty(sum(sizes), dtype=torch.int64, device=device)
        self.buffer = buffer
        tokens, peaks, masses, chosen, tops = torch.split(buffer, sizes)
        self.tokens, self.peaks = tokens, peaks.view(torch.float64)
        self.masses, self.chosen = masses.view(torch.float64), chosen.view(torch.float64)
        self.tops = tops
        """int64[L * 20]: see `unpack`."""

    def on_host(self, buffer: torch.Tensor) -> "Results":
        """Return the same results in a copy of the buffer."""
        return Results(len(self.tokens), len(self.chosen), buffer=buffer)


def unpack(packed: np.ndarray) -> list[tuple[float, int]]:
    """Return (-logit, token) of each entry of a row of `tops`, without tokens that cannot occur."""
    nan_key = NAN_KEY.value
    keys = (packed >> 32).astype(np.int32)
    logits = (keys ^ ((keys >> 31) & nan_key)).view(np.float32)
    tokens = nan_key - (packed & nan_key)
    can_occur = ~np.isneginf(logits) & (packed != NO_LOGIT.value)
    return list(zip((-logits[can_occur]).tolist(), tokens[can_occur].tolist(), strict=True))
