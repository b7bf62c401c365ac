"""Log-probabilities of the tokens of prompts, with the bits that they would have as chosen tokens.

The rows are many, so their copies are made for some rows at a time.
"""

from collections.abc import Sequence

import torch

from stonechat_models.hardware.transfers import HostCopies, to_device
from stonechat_models.sampling.logprobs import largest, padded, peak_and_mass, top_lists
from stonechat_models.sampling.rows import log_norm, token_logprobs
from stonechat_models.types import TokenLogprobs

SLICE_BYTES = 64 << 20
"""Size of the logits whose copies are made at a time."""


class PromptLogprobs:
    """The log-probabilities of given tokens: computed on the device, on the host after `read`."""

    def __init__(
        self,
        logits: torch.Tensor,
        rows: Sequence[int],
        token_ids: Sequence[int],
        num_tops: Sequence[int],
    ) -> None:
        """Start to compute them from `rows` of float[R, V]. Nothing waits for the device.

        For each of the rows, `token_ids` has its token, and `num_tops` how many of the most likely
        tokens it wants.
        """
        if logits.device.type == "mps":  # MPS has no float64, and its memory is the CPU's
            logits = logits.cpu()
        self._token_ids, self._num_tops = token_ids, num_tops
        self._vocab_size = logits.shape[1]
        step = max(1, SLICE_BYTES // (4 * self._vocab_size))
        index = to_device(rows, logits.device, torch.int64)
        tokens = to_device(token_ids, logits.device, torch.int64)
        wants_tops = any(num_tops)
        slices = [
            self._compute(logits[index[i : i + step]], tokens[i : i + step], wants_tops)
            for i in range(0, len(rows), step)
        ]
        results = [torch.cat(parts) for parts in zip(*slices, strict=True)]
        self._results = HostCopies(results) if logits.device.type == "cuda" else results

    def _compute(
        self, logits: torch.Tensor, tokens: torch.Tensor, wants_tops: bool
    ) -> list[torch.Tensor]:
        """Return the tokens' logits and ranks, the rows' peaks and masses, and their largest
        logits."""
        raw = padded(logits)
        values = raw.gather(1, tokens.unsqueeze(1))
        # The mask is float: torch would convert a boolean mask. It counts exactly up to 2^24.
        ranks = torch.gt(raw, values, out=torch.empty_like(raw)).sum(1) + 1
        tops = largest(raw, self._vocab_size) if wants_tops else ()
        return [values.squeeze(1), ranks, *peak_and_mass(raw), *tops]

    def read(self) -> list[TokenLogprobs]:
        """Wait for the log-probabilities. One is NaN if its row is not finite."""
        results = self._results
        host = results.read() if isinstance(results, HostCopies) else results
        values, ranks, peaks, masses = (tensor.tolist() for tensor in host[:4])
        tops = top_lists(host[4:], self._vocab_size) or [[]] * len(values)
        return [
            token_logprobs(
                token_id,
                values[i],
                log_norm(peaks[i], masses[i]),
                tops[i][: self._num_tops[i]],
                int(ranks[i]),
            )
            for i, token_id in enumerate(self._token_ids)
        ]
