"""One step in flight: its logits are computed, its tokens are sampled, then they are read.

Only the reading waits for the device.
"""

from itertools import islice

from stonechat_models.backends.base import Array, CausalModel
from stonechat_models.engine.media_steps import MediaSteps
from stonechat_models.engine.placement import Placement
from stonechat_models.engine.sequence import Scheduled
from stonechat_models.sampling.state import (
    PromptScores,
    SampledTokens,
    SamplerLike,
    SamplingLike,
    SamplingState,
)


class InFlightStep:
    """The items of one step. The constructor launches the forward pass."""

    def __init__(
        self,
        model: CausalModel,
        items: list[Scheduled],
        after: "InFlightStep | None" = None,
        *,
        place: Placement,
        block_size: int,
        media: MediaSteps | None,
    ) -> None:
        """`after` is the previous step, sampled but not read. Items may depend on its tokens."""
        self.items = items
        self._place = place
        if model.info.keeps_state:
            for item in items:
                _begin_state(item)
        sampling = None if after is None else after._sampling
        batch = place.batch(items, block_size, None if sampling is None else sampling.tokens)
        if media is not None and media.num_live:
            media.add_to(batch, items)
        self._logits: Array | None
        """None once sampling starts: they are large, and the next step needs the memory."""
        self._hidden: Array | None = None
        """What vectors are rows of: hidden states, or the logits of a reranker's tokens."""
        info = model.info
        makes_vectors = info.embedding is not None or info.ranking is not None
        makes_vectors = makes_vectors and any(item.wants_vector for item in items)
        token_ids = [] if info.ranking is None else list(info.ranking.token_ids)
        if makes_vectors and not token_ids:
            self._logits, self._hidden = model.forward_hidden(batch)
        else:
            self._logits = model.forward(batch)
        if makes_vectors and token_ids:
            self._hidden = self._logits[:, token_ids]
        self._sampling: SamplingLike | None = None
        self._prompts: PromptScores | None = None
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
            self._prompts = _score_prompts(sampler, logits, self.items)
        if len(rows) < first:
            logits = self._place.select(logits, rows)
        self._sampling = sampler.launch(logits, states)

    def read(self) -> SampledTokens:
        """Wait for the sampled tokens. Those of an item start at its `row`.

        Gives the items the log-probabilities of their prompts, and their vectors.
        """
        assert self._sampling is not None, "a step is sampled before it is read"
        if self._hidden is not None:
            self._read_vectors(self._hidden)
        if self._prompts is not None:
            entries = iter(self._prompts.read())
            for item in self.items:
                item.prompt_logprobs = tuple(islice(entries, item.num_prompt_rows))
        return self._sampling.read()

    def _read_vectors(self, hidden: Array) -> None:
        """Give each item that wants it the row of its last token. `hidden` has a row for each row
        of logits."""
        rows: dict[int, Scheduled] = {}
        num_rows = 0
        for item in self.items:
            num_rows += item.num_prompt_rows + item.num_rows
            if item.wants_vector:
                rows[num_rows - 1] = item
        vectors = self._place.read(hidden, list(rows))
        for item, vector in zip(rows.values(), vectors, strict=True):
            item.vector = vector


def _score_prompts(sampler: SamplerLike, logits: Array, items: list[Scheduled]) -> PromptScores:
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
    return sampler.score(logits, rows, token_ids, num_tops)


def _begin_state(item: Scheduled) -> None:
    """Let the item compute all tokens again if the recurrent state is not that of its start."""
    sequence = item.sequence
    item.num_again = 0 if sequence.num_state_tokens == item.start else item.start
    sequence.num_state_tokens = -1  # until the step is launched
