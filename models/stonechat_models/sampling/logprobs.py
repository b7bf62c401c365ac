"""Log-probabilities of the raw logits: before bias, penalties, masks and temperature."""

import math
from collections.abc import Sequence

import torch

from stonechat_models.hardware.transfers import to_device
from stonechat_models.sampling.inverse_cdf import padded_width, row_sums
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
        logprob_rows = self._select_rows(logits)
        shape = (len(self.rows), padded_width(self._vocab_size))
        self._raw = torch.full(shape, float("-inf"), device=logits.device)
        self._raw[:, : self._vocab_size] = logprob_rows
        self._peak = self._raw.amax(1)
        self._mass = row_sums(torch.sub(self._raw, self._peak.unsqueeze(1)).exp_())
        self._tops: tuple[torch.Tensor, torch.Tensor] | None = None
        if any(self._num_tops):
            # Always the maximum, so that a row's ties do not depend on what other rows request.
            self._tops = top_values(self._raw, min(MAX_TOP_LOGPROBS, self._vocab_size))

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
        tops = self._top_lists(tensors[4:])
        for i, row in enumerate(self.rows):
            norm = peaks[i] + math.log(masses[i]) if masses[i] > 0 else math.nan
            best = tops[i][: self._num_tops[i]]
            entries[row] = TokenLogprobs(
                token_id=ids[i],
                logprob=values[i] - norm,
                top_ids=tuple(token for _, token in best),
                top_logprobs=tuple(-value - norm for value, _ in best),
            )
        return entries

    def _top_lists(self, tops: Sequence[torch.Tensor]) -> list[list[tuple[float, int]]]:
        """Return (-logit, token) of each row's tops, best first, ties by token id."""
        if not tops:
            return [[] for _ in self.rows]
        values, columns = tops
        pairs = zip((-values).tolist(), columns.tolist(), strict=True)
        return [
            sorted((v, c) for v, c in zip(vs, cs, strict=True) if c < self._vocab_size)
            for vs, cs in pairs
        ]
