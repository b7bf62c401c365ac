"""Turns a step's logits into one token per row, for rows of every kind in one pass.

Order per row, on raw logits: bias, penalties, suppressed tokens and constraint (`edits`), then
temperature, top_k, min_p, top_p (`truncation`), then the draw (`inverse_cdf`). Only the row's seed,
choice index and position determine the variate of the draw. There is no random generator, and no
sum depends on the batch: a row's token has the same bits alone and in any batch.
"""

from collections.abc import Callable, Sequence

import torch

from stonechat_models.hardware.transfers import HostCopies, to_device
from stonechat_models.sampling.edits import edit_rows
from stonechat_models.sampling.inverse_cdf import draw, padded_width
from stonechat_models.sampling.logprobs import Logprobs
from stonechat_models.sampling.rows import LEAST_TEMPERATURE, Errors, flag_rows, group_index
from stonechat_models.sampling.state import SampledTokens, SamplingState, uniform_variate
from stonechat_models.sampling.truncation import Cuts, cut_weights
from stonechat_models.types import SamplingParams, TokenLogprobs


class Sampler:
    """Chooses tokens in plain PyTorch on any device; results move to the host once, at the end."""

    score = Logprobs

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._width = padded_width(vocab_size)
        self._tensor: Callable[..., torch.Tensor] = torch.tensor
        """Makes a tensor on the device."""
        if self._device.type == "cuda":
            self._tensor = to_device

    def __call__(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> SampledTokens:
        """Choose a token for each row of float[R, V], and wait for them; see `launch`."""
        return self.launch(logits, states).read()

    def launch(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> "Sampling":
        """Start to choose a token for each row of float[R, V]. May modify `logits` in place.

        Nothing waits for the device before `Sampling.read`, unless a row is edited. A row that
        cannot be sampled (NaN or infinite logits, every token forbidden, a constraint that fails)
        gets a message in `errors` and the token -1; the other rows are not affected.
        """
        if logits.shape != (len(states), self._vocab_size):
            raise ValueError(
                f"{len(states)} rows of {self._vocab_size} logits expected, "
                f"not {tuple(logits.shape)}"
            )
        if self._device.type == "mps":  # MPS has no float64, and its memory is the CPU's
            logits = logits.cpu()
        if not states:
            return Sampling(torch.empty(0, dtype=torch.int64), torch.empty(0), [], None, {})
        logits = logits.float().contiguous()
        rows = [row for row, s in enumerate(states) if s.params.top_logprobs is not None]
        needs_edits = any(state.needs_edits for state in states)
        raw = logits.clone() if rows and needs_edits else logits
        errors = _edit(logits, states) if needs_edits else {}
        tokens, peaks = self._choose(logits, states)
        logprobs = None
        if rows:
            num_tops = [states[row].params.top_logprobs or 0 for row in rows]
            chosen = tokens[to_device(rows, logits.device)]
            logprobs = Logprobs(raw, rows, chosen, num_tops, has_ranks=False)
        return Sampling(tokens, peaks, rows, logprobs, errors)

    def _choose(
        self, logits: torch.Tensor, states: Sequence[SamplingState]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return int64[R], the tokens, and float32[R], the largest edited logit of each row."""
        groups: tuple[tuple[list[int], Callable[..., _TokensAndPeaks]], ...] = (
            ([], _choose_greedy),
            ([], self._choose_plain),
            ([], self._choose_truncated),
        )
        for row, state in enumerate(states):
            groups[group_index(state.params)][0].append(row)
        for rows, choose in groups:
            if len(rows) == len(states):
                return choose(logits, states)
        tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
        peaks = torch.empty(len(states), device=logits.device)
        for rows, choose in groups:
            if rows:
                indices = to_device(rows, logits.device)
                tokens[indices], peaks[indices] = choose(logits[indices], [states[r] for r in rows])
        return tokens, peaks

    def _choose_plain(
        self, logits: torch.Tensor, states: Sequence[SamplingState]
    ) -> "_TokensAndPeaks":
        weights, peaks = self._weigh(logits, states)
        return self._draw(weights, states), peaks

    def _choose_truncated(
        self, logits: torch.Tensor, states: Sequence[SamplingState]
    ) -> "_TokensAndPeaks":
        weights, peaks = self._weigh(logits, states)
        cuts = _build_cuts([state.params for state in states], logits.device)
        cut_weights(weights, cuts, on_host=logits.device.type == "cpu")
        return self._draw(weights, states), peaks

    def _weigh(
        self, logits: torch.Tensor, states: Sequence[SamplingState]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32[R, padded V], exp((logit - peak) / temperature), and the peaks [R]."""
        temperatures = [max(state.params.temperature, LEAST_TEMPERATURE) for state in states]
        peaks = logits.amax(1)
        weights = torch.empty(len(states), self._width, device=logits.device)
        weights[:, self._vocab_size :] = float("-inf")
        torch.sub(logits, peaks.unsqueeze(1), out=weights[:, : self._vocab_size])
        if temperatures.count(1.0) < len(temperatures):
            weights /= self._tensor(temperatures, device=logits.device).unsqueeze(1)
        return weights.exp_(), peaks

    def _draw(self, weights: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
        variates = [
            uniform_variate(state.seed, state.choice_index, state.num_output_tokens)
            for state in states
        ]
        on_device = self._tensor(variates, device=weights.device, dtype=torch.float64)
        return draw(weights, on_device).clamp_(max=self._vocab_size - 1)


class Sampling:
    """The tokens of a launched pass: on the device at once, on the host after `read`."""

    def __init__(
        self,
        tokens: torch.Tensor,
        peaks: torch.Tensor,
        rows: list[int],
        logprobs: Logprobs | None,
        errors: dict[int, str],
    ) -> None:
        """`logprobs` are those of `rows`, which want them."""
        self.tokens = tokens
        """int64[R], on the device. A row that fails has an arbitrary token of the vocabulary."""
        self._rows, self._logprobs, self._errors = rows, logprobs, errors
        results = [tokens, peaks]
        self._results = HostCopies(results) if tokens.device.type == "cuda" else results

    def read(self) -> SampledTokens:
        """Wait for the tokens and return them. Call it once."""
        results = self._results
        tokens, peaks = results.read() if isinstance(results, HostCopies) else results
        token_ids, errors = tokens.tolist(), self._errors
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        if self._logprobs is not None:
            for row, entry in zip(self._rows, self._logprobs.read(), strict=True):
                logprobs[row] = entry
        flag_rows(peaks.tolist(), logprobs, errors)
        for row in errors:
            token_ids[row] = -1
            logprobs[row] = None
        return SampledTokens(token_ids, logprobs, errors)


_TokensAndPeaks = tuple[torch.Tensor, torch.Tensor]
"""Tokens int64[R] and peaks float32[R] of a group of rows."""


def _edit(logits: torch.Tensor, states: Sequence[SamplingState]) -> Errors:
    """Edit float32[R, V] in place, on the host. Return the errors of rows."""
    host = logits.cpu()  # itself, if it is there
    errors = edit_rows(host.numpy(), states)
    logits.copy_(host)
    return errors


def _choose_greedy(logits: torch.Tensor, states: Sequence[SamplingState]) -> _TokensAndPeaks:
    """Choose the largest logit of each row. A tie goes to the lowest token id."""
    if logits.device.type == "cpu":  # numpy's argmax is vectorised, torch's is not
        tokens = torch.from_numpy(logits.numpy().argmax(1))
    else:
        tokens = logits.argmax(1)
    return tokens, logits.gather(1, tokens.unsqueeze(1)).squeeze(1)


def _build_cuts(params: Sequence[SamplingParams], device: torch.device) -> Cuts:
    rows = [(float(p.top_k), p.min_p, p.top_p) for p in params]
    top_k, min_p, top_p = to_device(rows, device, torch.float64).unbind(1)
    return Cuts(
        top_k=top_k,
        min_p=min_p,
        top_p=top_p,
        any_top_k=any(row[0] > 0 for row in rows),
        any_min_p=any(row[1] > 0 for row in rows),
        any_top_p=any(row[2] < 1 for row in rows),
    )
