"""One step in flight: its logits are computed, its tokens are sampled, then they are read.

Only the reading waits for the device.
"""

import torch

from stonechat_models.backends.base import CausalModel
from stonechat_models.engine.batch import build_batch
from stonechat_models.engine.sequence import Scheduled
from stonechat_models.hardware.transfers import to_device
from stonechat_models.sampling.state import SampledTokens, SamplerLike, SamplingLike, SamplingState


class InFlightStep:
    """The items of one step. The constructor launches the forward pass."""

    def __init__(
        self,
        model: CausalModel,
        items: list[Scheduled],
        *,
        block_size: int,
        device: torch.device,
        after: "InFlightStep | None" = None,
    ) -> None:
        """`after` is the previous step, sampled but not read. Items may depend on its tokens."""
        self.items = items
        if model.info.keeps_state:
            for item in items:
                _begin_state(item)
        sampling = None if after is None else after._sampling
        sampled_ids = None if sampling is None else sampling.tokens.to(device)
        batch = build_batch(items, block_size, device, sampled_ids)
        self._logits: torch.Tensor | None = model.forward(batch)
        """None once sampling starts: they are large, and the next step needs the memory."""
        self._sampling: SamplingLike | None = None
        if model.info.keeps_state:
            for item in items:
                item.sequence.num_state_tokens = item.context_len

    def sample(self, sampler: SamplerLike) -> None:
        """Launch the sampling of all items that are not dropped."""
        rows: list[int] = []
        states: list[SamplingState] = []
        num_rows = 0
        for item in self.items:
            if item.reaches_end and not item.is_dropped:
                item.row = len(rows)
                rows += range(num_rows, num_rows + item.num_rows)
                states.append(item.sequence.sampling)
                if item.draft:
                    states += item.sequence.sampling.ahead(item.draft)
            num_rows += item.num_rows
        logits, self._logits = self._logits, None
        assert logits is not None, "a step is sampled once"
        if len(rows) < num_rows:
            logits = logits[to_device(rows, logits.device, torch.int64)]
        self._sampling = sampler.launch(logits, states)

    def read(self) -> SampledTokens:
        """Wait for the sampled tokens. Those of an item start at its `row`."""
        assert self._sampling is not None, "a step is sampled before it is read"
        return self._sampling.read()


def _begin_state(item: Scheduled) -> None:
    """Let the item compute all tokens again if the recurrent state is not that of its start."""
    sequence = item.sequence
    item.num_again = 0 if sequence.num_state_tokens == item.start else item.start
    sequence.num_state_tokens = -1  # until the step is launched
