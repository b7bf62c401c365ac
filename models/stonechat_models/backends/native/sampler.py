"""The sampler of the native backend: it edits logits in PyTorch and chooses in compiled code."""

from array import array
from collections.abc import Sequence

import torch

from stonechat_models.backends.native.bindings import Library
from stonechat_models.errors import StepError
from stonechat_models.sampling.inverse_cdf import uniform_variate
from stonechat_models.sampling.sampler import LEAST_TEMPERATURE, Sampler, group_index
from stonechat_models.sampling.state import SamplingState


class NativeSampler(Sampler):
    """Chooses as `Sampler` does, with the same sums, in `csrc/sampler.h`.

    A few operators of PyTorch on one row would take as long as a small model's layers, and its
    threads would spin beside those of the model.
    """

    def __init__(self, library: Library, pool: int, vocab_size: int) -> None:
        """`pool` is a pool of threads. It must exist as long as rows are sampled."""
        super().__init__(vocab_size, "cpu")
        self._library = library
        self._handle = library.sampler_create(pool)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.sampler_destroy(self._handle)
            self._handle = 0

    def _choose(
        self, logits: torch.Tensor, states: Sequence[SamplingState]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Overwrites the logits. Raises `StepError` if there is not enough memory."""
        num_rows = len(states)
        settings = array("d")
        for state in states:
            settings.extend(state.settings or self._settings(state))
            settings.append(
                uniform_variate(state.seed, state.choice_index, state.num_output_tokens)
                if settings[-4]
                else 0.5
            )
        tokens, peaks = torch.empty(num_rows, dtype=torch.int64), torch.empty(num_rows)
        problem = self._library.sample(
            *(self._handle, logits.data_ptr(), num_rows, self._vocab_size, settings.tobytes()),
            *(tokens.data_ptr(), peaks.data_ptr()),
        )
        if problem is not None:
            raise StepError(problem.decode())
        return tokens, peaks

    def _settings(self, state: SamplingState) -> tuple[float, ...]:
        """Make the first fields of the row's `RowSettings`, once."""
        params = state.params
        is_greedy = group_index(params) == 0
        state.settings = (
            0.0 if is_greedy else max(params.temperature, LEAST_TEMPERATURE),
            params.top_k if params.top_k < self._vocab_size else 0,  # else all tokens are kept
            params.min_p,
            params.top_p,
        )
        return state.settings
