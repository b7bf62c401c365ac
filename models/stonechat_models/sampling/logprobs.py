"""Log-probabilities of the raw model output: before bias, penalties, masks and temperature."""

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
        if not self.rows:
            return
        chosen_rows = self._of_wanted_rows(logits)
        shape = (len(self.rows), padded_width(self._vocab_size))
        self._raw = torch.full(shape, float("-inf"), device=logits.device)
        self._raw[:, : self._vocab_size] = chosen_rows
        self._peak = self._raw.amax(1)
        self._mass = row_sums(torch.sub(self._raw, self._peak.unsqueeze(1)).exp_())
        self._tops: tuple[torch.Tensor, torch.Tensor] | None = None
        if any(self._num_tops):
            # Always the most that can be asked for, so that a row's ties do not depend on others.
            self._tops = top_values(self._raw, min(MAX_TOP_LOGPROBS, self._vocab_size))

    def _of_wanted_rows(self, values: torch.Tensor) -> torch.Tensor:
        """The rows that want logprobs, of one entry a row of the batch."""
        if len(self.rows) == len(values):
            return values
        return values[to_device(self.rows, values.device)]

    def choose(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Return what `read` needs on the host; `tokens` int64[rows of the batch] were chosen.

        To be called once: the raw logits are not kept longer.
        """
        if not self.rows:
            return []
        chosen = self._of_wanted_rows(tokens)
        values = self._raw.gather(1, chosen.unsqueeze(1)).squeeze(1)
        del self._raw
        return [chosen, values, self._peak, self._mass, *(self._tops or ())]

    def read(self, tensors: Sequence[torch.Tensor], num_rows: int) -> list[TokenLogprobs | None]:
        """Return one entry a row of the batch, None for rows that asked for none.

        `tensors` are those of `choose`. A row that is not finite gives NaN. Tokens that cannot
        occur (a logit of -inf) may be missing from the tops.
        """
        entries: list[TokenLogprobs | None] = [None] * num_rows
        if not self.rows:
            return entries
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
