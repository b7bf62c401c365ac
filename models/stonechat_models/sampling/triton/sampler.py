"""The sampler in a few Triton kernels. It gives the tokens of `sampler.Sampler`.

A batch of rows of any kinds takes one launch if all are greedy and two without top_k and top_p. It
takes four if each top_k is at most V / 4096, and six with another top_k or top_p. There is one more
for log-probabilities, and up to two more for edits. Exponentials differ between devices in their
last bit, and shares of the mass are compared in fixed point. So a draw or a cut that falls between
two tokens within some 1e-7 of the mass may differ from the CPU's. It does not depend on the batch.
"""

import math
from collections.abc import Sequence

import torch

from stonechat_models.hardware.device import as_current_device
from stonechat_models.hardware.transfers import HostCopies, to_device
from stonechat_models.sampling.inverse_cdf import level_widths, padded_width
from stonechat_models.sampling.logprobs import Logprobs
from stonechat_models.sampling.rows import flag_rows, log_norm, token_logprobs
from stonechat_models.sampling.state import SampledTokens, SamplingState
from stonechat_models.sampling.triton import kernels, truncation
from stonechat_models.sampling.triton.edits import edit_logits
from stonechat_models.sampling.triton.launcher import Launcher
from stonechat_models.sampling.triton.records import Records, Results, num_tops, unpack
from stonechat_models.sampling.triton.rows import CHUNK
from stonechat_models.types import TokenLogprobs

_CHUNK = CHUNK.value
_SEARCH_TILE = 512
_SEARCH_WARPS = 16
_CHUNK_WARPS = 8
_CHOICE_WARPS = 2
"""So that a thread holds the 16 tokens of an entry of the first level."""


class TritonSampler:
    """Chooses tokens on a device that runs Triton kernels; see `Sampler` for the rules."""

    score = Logprobs

    def __init__(
        self, vocab_size: int, device: torch.device | str, *, converts: bool = False
    ) -> None:
        """`converts`: logits become float32 first.

        Raise `ValueError` for a vocabulary that is too large for the kernels.
        """
        self._vocab_size = vocab_size
        self._converts = converts
        self._device = torch.device(device)
        widths = level_widths(padded_width(vocab_size))
        if len(widths) > 4:
            raise ValueError(f"a vocabulary of {vocab_size} tokens is too large for the kernels")
        self._width = widths[1]
        self._num_chunks = widths[0] // _CHUNK
        self._chunks = self._vocab_size, self._num_chunks, _power_of_two(self._num_chunks)
        self._tree = self._vocab_size, self._width, len(widths) == 4, _power_of_two(widths[-1])
        self._launchers: dict[torch.dtype, _Launchers] = {}
        """By the dtype of the logits."""

    def __call__(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> SampledTokens:
        """Choose a token for each row of float[R, V], and wait for them; see `launch`."""
        return self.launch(logits, states).read()

    def launch(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> "TritonSampling":
        """Start to choose a token for each row of float[R, V], as `Sampler.launch` does.

        Rows of half precision are read as they are, unless any is to be edited, or all are to be
        converted.
        """
        if logits.shape != (len(states), self._vocab_size):
            raise ValueError(
                f"{len(states)} rows of {self._vocab_size} logits expected, "
                f"not {tuple(logits.shape)}"
            )
        with as_current_device(logits.device):
            return self._launch(logits, states)

    def _launch(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> "TritonSampling":
        needs_edits = any(state.needs_edits for state in states)
        logits = (logits.float() if needs_edits or self._converts else logits).contiguous()
        if logits.data_ptr() % 16:  # the kernels are compiled for aligned rows
            logits = logits.clone()
        raw_rows = [row for row, s in enumerate(states) if s.params.top_logprobs is not None]
        sources, errors = raw_rows, {}
        if needs_edits:
            if raw_rows:  # log-probabilities are of the logits before the edits
                logits = _with_copies(logits, raw_rows)
                sources = list(range(len(states), len(logits)))
            errors = edit_logits(logits[: len(states)], states)
        is_cuda = logits.device.type == "cuda"
        records = Records(
            states, raw_rows, sources, self._vocab_size, self._num_chunks, pinned=is_cuda
        )
        results = Results(len(records.tensor), len(raw_rows), logits.device)
        if states:
            self._choose(logits, records, results)
        return TritonSampling(results, states, raw_rows, errors)

    def _choose(self, logits: torch.Tensor, records: Records, results: Results) -> None:
        launchers = self._launchers_of(logits.dtype)
        on_device = records.tensor.to(logits.device, non_blocking=True)
        num_rows = len(on_device)
        grid = self._num_chunks, num_rows, 1
        bests = torch.empty(num_rows, self._num_chunks, dtype=torch.int64, device=logits.device)
        tokens = results.tokens
        launchers.find_peaks(grid, logits, on_device, bests, tokens, results.peaks, *self._chunks)
        if records.truncates:
            self._truncate(logits, on_device, tallies=records.tallies)
        if records.samples:
            levels = torch.empty(num_rows * (self._width + self._width // 16), device=logits.device)
            second_level = levels[num_rows * self._width :]
            masses = results.masses
            sums = levels, second_level
            launchers.draw(grid, logits, on_device, *sums, tokens, masses, *self._tree)
        num_raw = len(results.chosen)
        if num_raw:
            inputs = logits, on_device[-num_raw:], bests[-num_raw:], tokens
            outputs = results.chosen, results.tops
            launchers.find_tops((num_raw, 1, 1), *inputs, *outputs, *self._chunks)

    def _truncate(self, logits: torch.Tensor, records: torch.Tensor, *, tallies: bool) -> None:
        """Find the thresholds of the rows."""
        launchers = self._launchers_of(logits.dtype)
        num_rows = len(records)
        grid = self._num_chunks, num_rows, 1
        candidates = torch.empty(num_rows, self._num_chunks * _CHUNK, device=logits.device)
        sizes = self._vocab_size, self._num_chunks
        if tallies:
            launchers.tally(grid, logits, records, *sizes)
            launchers.refine(grid, logits, records, self._vocab_size)
        launchers.gather(grid, logits, records, candidates, *sizes)
        rows = num_rows, 1, 1
        launchers.find_thresholds(rows, records, candidates, self._num_chunks, _SEARCH_TILE)

    def _launchers_of(self, dtype: torch.dtype) -> "_Launchers":
        launchers = self._launchers.get(dtype)
        if launchers is None:
            launchers = self._launchers[dtype] = _Launchers()
        return launchers


class _Launchers:
    """Launchers of the kernels for logits of one dtype."""

    def __init__(self) -> None:
        self.find_peaks = Launcher(kernels.peak_kernel)
        self.tally = Launcher(truncation.tally_kernel, num_warps=_CHUNK_WARPS)
        self.refine = Launcher(truncation.refine_kernel, num_warps=_CHUNK_WARPS)
        self.gather = Launcher(truncation.gather_kernel, num_warps=_CHUNK_WARPS)
        self.find_thresholds = Launcher(truncation.threshold_kernel, num_warps=_SEARCH_WARPS)
        self.draw = Launcher(kernels.choose_kernel, num_warps=_CHOICE_WARPS)
        self.find_tops = Launcher(kernels.tops_kernel)


def _with_copies(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Return [R + len(rows), V]: all rows, then copies of `rows`."""
    num_rows, vocab_size = logits.shape
    copies = logits.new_empty(num_rows + len(rows), vocab_size)
    copies[:num_rows] = logits
    index = to_device(rows, logits.device)
    torch.index_select(logits, 0, index, out=copies[num_rows:])
    return copies


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << (number - 1).bit_length()


class TritonSampling:
    """The tokens of a launched pass: on the device at once, on the host after `read`."""

    def __init__(
        self,
        results: Results,
        states: Sequence[SamplingState],
        raw_rows: list[int],
        errors: dict[int, str],
    ) -> None:
        self.tokens = results.tokens[: len(states)]
        """int64[R], on the device. A row that fails has an arbitrary token of the vocabulary."""
        self._results = results
        self._raw_rows, self._num_tops = raw_rows, num_tops(states, raw_rows)
        self._errors = errors
        is_cuda = results.buffer.device.type == "cuda"
        self._copies = HostCopies([results.buffer]) if is_cuda else None

    def read(self) -> SampledTokens:
        """Wait for the tokens and return them. Call it once."""
        results, num_rows, errors = self._results, len(self.tokens), self._errors
        if self._copies is not None:
            results = results.on_host(self._copies.read()[0])
        token_ids = results.tokens[:num_rows].tolist()
        logprobs: list[TokenLogprobs | None] = [None] * num_rows
        if self._raw_rows:
            self._read_logprobs(results, token_ids, logprobs)
        flag_rows(results.peaks[:num_rows].tolist(), logprobs, errors)
        for row in errors:
            token_ids[row] = -1
            logprobs[row] = None
        return SampledTokens(token_ids, logprobs, errors)

    def _read_logprobs(
        self, results: Results, token_ids: list[int], logprobs: list[TokenLogprobs | None]
    ) -> None:
        num_raw = len(self._raw_rows)
        peaks, masses = results.peaks[-num_raw:].tolist(), results.masses[-num_raw:].tolist()
        chosen, tops = results.chosen.tolist(), results.tops.numpy().reshape(num_raw, -1)
        for i, row in enumerate(self._raw_rows):
            norm = log_norm(peaks[i], masses[i]) if math.isfinite(peaks[i]) else math.nan
            best = unpack(tops[i, : self._num_tops[i]])
            logprobs[row] = token_logprobs(token_ids[row], chosen[i], norm, best)
