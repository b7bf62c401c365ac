"""Log-probabilities of the raw logits: before bias, penalties, masks and temperature."""

from collections.abc import Sequence

import torch

from stonechat_models.hardware.transfers import to_device
from stonechat_models.sampling.inverse_cdf import padded_width, row_sums
from stonechat_models.sampling.rows import log_norm, token_logprobs
from stonechat_models.sampling.state import SamplingState
from stonechat_models.sampling.truncation import top_values
from stonechat_models.types import MAX_TOP_LOGPROBS, TokenLogprobs


class RawLogprobs:
    """The raw logits of the rows that want logprobs, kept until their tokens are chosen."""

    def __init__(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> None:
        self.rows = [
            row for row, state in enumerate(states) if state.params.top_logprobs is not None
        ]
        self._num_tops = [states[row].params.top_logprobs or 0 for row in self.rows]
        self._vocab_size = logits.shape[1]
        assert self.rows, "no row wants logprobs"
        self._raw = padded(self._select_rows(logits))
        self._peak, self._mass = peak_and_mass(self._raw)
        self._tops: tuple[torch.Tensor, torch.Tensor] | None = None
        if any(self._num_tops):
            self._tops = largest(self._raw, self._vocab_size)

    def _select_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Select the rows that want logprobs from `values`, which has one entry per batch row."""
        if len(self.rows) == len(values):
            return values
        return values[to_device(self.rows, values.device)]

    def choose(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Take the chosen `tokens`, int64[rows of the batch]. Return the tensors for `read`.

        Call it once: it frees the raw logits.
        """
        chosen_tokens = self._select_rows(tokens)
        values = self._raw.gather(1, chosen_tokens.unsqueeze(1)).squeeze(1)
        del self._raw
        return [chosen_tokens, values, self._peak, self._mass, *(self._tops or ())]

    def read(self, tensors: Sequence[torch.Tensor], num_rows: int) -> list[TokenLogprobs | None]:
        """Return one entry per row of the batch, None for rows that do not want logprobs.

        `tensors` are those that `choose` returned, on the host. The log-probability is NaN if the
        row is not finite. Tokens that cannot occur (a logit of -inf) may be missing from the tops.
        """
        entries: list[TokenLogprobs | None] = [None] * num_rows
        ids, values, peaks, masses = (tensor.tolist() for tensor in tensors[:4])
        tops = top_lists(tensors[4:], self._vocab_size) or [[]] * len(self.rows)
        for i, row in enumerate(self.rows):
            norm = log_norm(peaks[i], masses[i])
            entries[row] = token_logprobs(ids[i], values[i], norm, tops[i][: self._num_tops[i]])
        return entries


def padded(logits: torch.Tensor) -> torch.Tensor:
    """Return a copy of float[R, V] as float32[R, n], padded with -inf for `peak_and_mass`."""
    num_rows, vocab_size = logits.shape
    raw = torch.full((num_rows, padded_width(vocab_size)), float("-inf"), device=logits.device)
    raw[:, :vocab_size] = logits
    return raw


def peak_and_mass(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logit of each row of float32[R, n], and float64[R], the sum of all
    exp(logit - peak)."""
    peak = raw.amax(1)
    return peak, row_sums(torch.sub(raw, peak.unsqueeze(1)).exp_())


def largest(raw: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logits of each row and their columns, for `top_lists`.

    Their number is always the same, so that ties do not depend on what other rows request.
    """
    return top_values(raw, min(MAX_TOP_LOGPROBS, vocab_size))


def top_lists(tops: Sequence[torch.Tensor], vocab_size: int) -> list[list[tuple[float, int]]]:
    """Return (-logit, token) of each row's `largest`, best first, ties by token id."""
    if not tops:
        return []
    values, columns = tops
    pairs = zip((-values).tolist(), columns.tolist(), strict=True)
    return [
        sorted((v, c) for v, c in zip(vs, cs, strict=True) if c < vocab_size) for vs, cs in pairs
    ]
