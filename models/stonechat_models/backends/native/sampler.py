"""The sampler of the native backend: it edits logits in numpy and chooses in compiled code."""

import ctypes
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import Library, ScoresStruct
from stonechat_models.errors import StepError
from stonechat_models.sampling.edits import edit_rows
from stonechat_models.sampling.rows import (
    LEAST_TEMPERATURE,
    flag_rows,
    log_norm,
    token_logprobs,
)
from stonechat_models.sampling.state import SampledTokens, SamplingState, uniform_variate
from stonechat_models.types import MAX_TOP_LOGPROBS, TokenLogprobs

Logits = npt.NDArray[np.float32]

SLICE_BYTES = 64 << 20
"""Size of the logits of prompts that are copied at a time."""


class NativeSampler:
    """Chooses as `sampling.sampler.Sampler` does, with the same sums (`csrc/sampler.h`).

    Logits are arrays of numpy. All is computed when a pass is launched.
    """

    def __init__(self, library: Library, pool: int, vocab_size: int) -> None:
        """`pool` is a pool of threads. It must exist as long as rows are sampled."""
        self._library = library
        self._vocab_size = vocab_size
        self._handle = library.sampler_create(pool)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.sampler_destroy(self._handle)
            self._handle = 0

    def __call__(self, logits: Logits, states: Sequence[SamplingState]) -> SampledTokens:
        """Choose a token for each row of float32[R, V]; see `launch`."""
        return self.launch(logits, states).read()

    def launch(self, logits: Logits, states: Sequence[SamplingState]) -> "NativeSampling":
        """Choose a token for each row of float32[R, V], as `Sampler` does.

        May overwrite the logits. Raises `StepError` if there is not enough memory.
        """
        if logits.shape != (len(states), self._vocab_size):
            raise ValueError(
                f"{len(states)} rows of {self._vocab_size} logits expected, not {logits.shape}"
            )
        rows = [i for i, state in enumerate(states) if state.params.top_logprobs is not None]
        raw = logits[rows] if rows else None  # before the edits
        needs_edits = any(state.needs_edits for state in states)
        errors = edit_rows(logits, states) if needs_edits else {}
        tokens, peaks = self._choose(logits, states)
        logprobs: list[TokenLogprobs | None] = [None] * len(states)
        if raw is not None:
            num_tops = [states[row].params.top_logprobs or 0 for row in rows]
            chosen = np.array(tokens)[rows]
            entries = self._scores(raw, chosen, num_tops, has_ranks=False)
            for row, entry in zip(rows, entries, strict=True):
                logprobs[row] = entry
        return NativeSampling(tokens, peaks, logprobs, errors)

    def score(
        self,
        logits: Logits,
        rows: Sequence[int],
        token_ids: Sequence[int],
        num_tops: Sequence[int],
    ) -> "ReadyScores":
        """See `SamplerLike`."""
        tokens, entries = np.array(token_ids, dtype=np.int64), list[TokenLogprobs]()
        step = max(1, SLICE_BYTES // (4 * self._vocab_size))
        for i in range(0, len(rows), step):
            part = slice(i, i + step)
            entries += self._scores(logits[rows[part]], tokens[part], num_tops[part])
        return ReadyScores(entries)

    def _choose(
        self, logits: Logits, states: Sequence[SamplingState]
    ) -> "tuple[array[int], array[float]]":
        """Return int64[R], the tokens, and float32[R], the largest edited logit of each row."""
        settings = array("d")
        for state in states:
            settings.extend(state.settings or self._settings(state))
            settings.append(
                uniform_variate(state.seed, state.choice_index, state.num_output_tokens)
                if settings[-4]
                else 0.5
            )
        tokens, peaks = array("q", bytes(8 * len(states))), array("f", bytes(4 * len(states)))
        problem = self._library.sample(
            *(self._handle, logits.ctypes.data, len(states), self._vocab_size),
            *(settings.buffer_info()[0], tokens.buffer_info()[0], peaks.buffer_info()[0]),
        )
        if problem is not None:
            raise StepError(problem.decode())
        return tokens, peaks

    def _settings(self, state: SamplingState) -> tuple[float, ...]:
        """Make the first fields of the row's `RowSettings`, once."""
        params = state.params
        state.settings = (
            0.0 if params.is_greedy else max(params.temperature, LEAST_TEMPERATURE),
            params.top_k if params.top_k < self._vocab_size else 0,  # else all tokens are kept
            params.min_p,
            params.top_p,
        )
        return state.settings

    def _scores(
        self,
        raw: Logits,
        tokens: npt.NDArray[np.int64],
        num_tops: Sequence[int],
        *,
        has_ranks: bool = True,
    ) -> list[TokenLogprobs]:
        """Return the log-probabilities of a token in each row of float32[R, V]."""
        count = len(tokens)
        tops = min(MAX_TOP_LOGPROBS, self._vocab_size) if any(num_tops) else 0
        values, peaks = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.float32)
        masses, ranks = np.empty(count, dtype=np.float64), np.empty(count, dtype=np.int32)
        top_values = np.empty((count, tops), dtype=np.float32)
        top_ids = np.empty((count, tops), dtype=np.int32)
        arrays = (values, peaks, masses, ranks, top_values, top_ids)
        problem = self._library.score(
            *(self._handle, raw.ctypes.data, count, self._vocab_size, tokens.ctypes.data),
            ctypes.byref(ScoresStruct(tops, *(a.ctypes.data for a in arrays))),
        )
        if problem is not None:
            raise StepError(problem.decode())
        entries = []
        norms = map(log_norm, peaks.tolist(), masses.tolist())
        lists = (tokens.tolist(), values.tolist(), norms, ranks.tolist())
        for i, (token, value, norm, rank) in enumerate(zip(*lists, strict=True)):
            best = zip((-top_values[i]).tolist(), top_ids[i].tolist(), strict=True)
            pairs = [pair for pair in islice(best, num_tops[i]) if pair[0] < math.inf]
            entries.append(token_logprobs(token, value, norm, pairs, rank if has_ranks else 0))
        return entries


@dataclass(slots=True)
class NativeSampling:
    """The tokens of a launched pass."""

    tokens: "array[int]"
    """int64[R]. A row that fails has an arbitrary token of the vocabulary."""
    peaks: "array[float]"
    logprobs: list[TokenLogprobs | None]
    errors: dict[int, str]

    def read(self) -> SampledTokens:
        """Return the tokens. Call it once."""
        token_ids, logprobs, errors = self.tokens.tolist(), self.logprobs, self.errors
        if any(logprobs) or not all(map(math.isfinite, self.peaks)):
            flag_rows(self.peaks.tolist(), logprobs, errors)
        for row in errors:
            token_ids[row] = -1
            logprobs[row] = None
        return SampledTokens(token_ids, logprobs, errors)


@dataclass(frozen=True, slots=True)
class ReadyScores:
    """Log-probabilities of a prompt's tokens."""

    entries: list[TokenLogprobs]

    def read(self) -> list[TokenLogprobs]:
        return self.entries
