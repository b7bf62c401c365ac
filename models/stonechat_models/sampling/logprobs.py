"""Log-probabilities of the raw logits: before bias, penalties, masks and temperature.

A token of a prompt has the same bits that it would have as a chosen token. The rows of a prompt are
many, so copies are made of some rows at a time.
"""

from collections.abc import Sequence

import torch

from stonechat_models.hardware.transfers import HostCopies, to_device
from stonechat_models.sampling.inverse_cdf import padded_width, row_sums
from stonechat_models.sampling.rows import log_norm, token_logprobs
from stonechat_models.sampling.truncation import top_values
from stonechat_models.types import MAX_TOP_LOGPROBS, TokenLogprobs

SLICE_BYTES = 64 << 20
"""Size of the logits whose copies are made at a time."""


class Logprobs:
    """The log-probabilities of given tokens: computed on the device, on the host after `read`."""

    def __init__(
        self,
        logits: torch.Tensor,
        rows: Sequence[int],
        token_ids: Sequence[int] | torch.Tensor,
        num_tops: Sequence[int],
        *,
        has_ranks: bool = True,
    ) -> None:
        """Start to compute them from `rows` of float[R, V]. Nothing waits for the device.

        For each of the rows, `token_ids` has its token (int64 if it is a tensor), and `num_tops`
        how many of the most likely tokens it wants. Without `has_ranks`, ranks are 0.
        """
        if logits.device.type == "mps":  # MPS has no float64, and its memory is the CPU's
            logits = logits.cpu()
        self._num_tops, self._has_ranks = num_tops, has_ranks
        self._vocab_size = logits.shape[1]
        step = max(1, SLICE_BYTES // (4 * self._vocab_size))
        index = to_device(rows, logits.device, torch.int64)
        if not isinstance(token_ids, torch.Tensor):
            token_ids = to_device(token_ids, logits.device, torch.int64)
        wants_tops, is_whole = any(num_tops), [*rows] == [*range(len(logits))]
        slices = [
            self._compute(
                logits[i : i + step] if is_whole else logits[index[i : i + step]],
                token_ids[i : i + step],
                wants_tops,
            )
            for i in range(0, len(rows), step)
        ]
        results = [torch.cat(parts) for parts in zip(*slices, strict=True)]
        self._results = HostCopies(results) if logits.device.type == "cuda" else results

    def _compute(
        self, logits: torch.Tensor, tokens: torch.Tensor, wants_tops: bool
    ) -> list[torch.Tensor]:
        """Return the tokens, their logits and ranks, the rows' peaks and masses, and their largest
        logits."""
        num_rows, vocab_size = logits.shape
        raw = torch.full((num_rows, padded_width(vocab_size)), float("-inf"), device=logits.device)
        raw[:, :vocab_size] = logits
        values = raw.gather(1, tokens.unsqueeze(1))
        ranks = torch.zeros_like(tokens)
        if self._has_ranks:
            # The mask is float: torch would convert a boolean mask. It counts exactly up to 2^24.
            ranks = torch.gt(raw, values, out=torch.empty_like(raw)).sum(1) + 1
        # Their number is always the same, so that ties do not depend on what other rows request.
        tops = top_values(raw, min(MAX_TOP_LOGPROBS, vocab_size)) if wants_tops else ()
        peaks = raw.amax(1)
        masses = row_sums(raw.sub_(peaks.unsqueeze(1)).exp_())  # of exp(logit - peak)
        return [tokens, values.squeeze(1), ranks, peaks, masses, *tops]

    def read(self) -> list[TokenLogprobs]:
        """Wait for the log-probabilities. One is NaN if its row is not finite."""
        results = self._results
        host = results.read() if isinstance(results, HostCopies) else results
        ids, values, ranks, peaks, masses = (tensor.tolist() for tensor in host[:5])
        tops = top_lists(host[5:], self._vocab_size) or [[]] * len(values)
        norms = map(log_norm, peaks, masses)
        wanted = (best[:num_tops] for best, num_tops in zip(tops, self._num_tops, strict=True))
        return list(map(token_logprobs, ids, values, norms, wanted, map(int, ranks)))


def top_lists(tops: Sequence[torch.Tensor], vocab_size: int) -> list[list[tuple[float, int]]]:
    """Return (-logit, token) of each row's largest logits, best first, ties by token id."""
    if not tops:
        return []
    values, columns = tops
    pairs = zip((-values).tolist(), columns.tolist(), strict=True)
    return [
        sorted((v, c) for v, c in zip(vs, cs, strict=True) if c < vocab_size) for vs, cs in pairs
    ]
