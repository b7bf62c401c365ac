"""One step in flight: its logits are computed, its tokens are sampled, then they are read.

Only the reading waits for the device.
"""

from itertools import islice

import torch

from stonechat_models.backends.base import CausalModel
from stonechat_models.engine.batch import build_batch
from stonechat_models.engine.sequence import Scheduled
from stonechat_models.hardware.transfers import to_device
from stonechat_models.sampling.prompt_logprobs import PromptLogprobs
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
        self._logits: torch.Tensor | None
        """None once sampling starts: they are large, and the next step needs the memory."""
        self._hidden: torch.Tensor | None = None
        if model.info.embedding is not None and any(item.wants_vector for item in items):
            self._logits, self._hidden = model.forward_hidden(batch)
        else:
            self._logits = model.forward(batch)
        self._sampling: SamplingLike | None = None
        self._prompts: PromptLogprobs | None = None
        if model.info.keeps_state:
            for item in items:
                item.sequence.num_state_tokens = item.context_len

    def sample(self, sampler: SamplerLike) -> None:
        """Launch the sampling of all items that are not dropped."""
        rows: list[int] = []
        states: list[SamplingState] = []
        first = num_prompt_rows = 0
        for item in self.items:
            if item.num_prompt_rows:
                first += item.num_prompt_rows
                num_prompt_rows += item.num_prompt_rows
            if not item.reaches_end:
                continue
            sequence, draft = item.sequence, item.draft
            if not item.is_dropped and sequence.max_tokens:
                item.row = len(rows)
                rows.append(first)
                states.append(sequence.sampling)
                if draft:
                    rows += range(first + 1, first + 1 + len(draft))
                    states += sequence.sampling.ahead(draft)
            first += 1 + len(draft)
        logits, self._logits = self._logits, None
        assert logits is not None, "a step is sampled once"
        if num_prompt_rows:
            self._prompts = _score_prompts(logits, self.items)
        if len(rows) < first:
            logits = logits[to_device(rows, logits.device, torch.int64)]
        self._sampling = sampler.launch(logits, states)

    def read(self) -> SampledTokens:
        """Wait for the sampled tokens. Those of an item start at its `row`.

        Gives the items the log-probabilities of their prompts, and their vectors.
        """
        assert self._sampling is not None, "a step is sampled before it is read"
        if self._hidden is not None:
            _read_vectors(self._hidden, self.items)
        if self._prompts is not None:
            entries = iter(self._prompts.read())
            for item in self.items:
                item.prompt_logprobs = tuple(islice(entries, item.num_prompt_rows))
        return self._sampling.read()


def _score_prompts(logits: torch.Tensor, items: list[Scheduled]) -> PromptLogprobs:
    """Launch the log-probabilities of prompts. `logits` are the rows of all items."""
    rows: list[int] = []
    token_ids: list[int] = []
    num_tops: list[int] = []
    num_rows = 0
    for item in items:
        sequence, num_prompt_rows = item.sequence, item.num_prompt_rows
        rows += range(num_rows, num_rows + num_prompt_rows)
        num_rows += num_prompt_rows + item.num_rows
        # A row is for the next token. The last row of an item that reaches its end is to sample.
        end = item.start + item.num_tokens + 1 - item.reaches_end
        token_ids += sequence.token_ids[end - num_prompt_rows : end]
        num_tops += [sequence.sampling.params.prompt_logprobs or 0] * num_prompt_rows
    return PromptLogprobs(logits, rows, token_ids, num_tops)


def _read_vectors(hidden: torch.Tensor, items: list[Scheduled]) -> None:
    """Give each item that wants it the hidden state of its last token. `hidden` has a row for each
    row of logits."""
    rows: dict[int, Scheduled] = {}
    num_rows = 0
    for item in items:
        num_rows += item.num_prompt_rows + item.num_rows
        if item.wants_vector:
            rows[num_rows - 1] = item
    vectors = hidden[to_device(list(rows), hidden.device, torch.int64)].cpu()
    for item, vector in zip(rows.values(), vectors, strict=True):
        item.vector = vector


def _begin_state(item: Scheduled) -> None:
    """Let the item compute all tokens again if the recurrent state is not that of its start."""
    sequence = item.sequence
    item.num_again = 0 if sequence.num_state_tokens == item.start else item.start
    sequence.num_state_tokens = -1  # until the step is launched
