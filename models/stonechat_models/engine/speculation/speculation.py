"""Speculative decoding: what sequences draft with, how much, and what is learned from the result.

A sequence drafts from its prediction or its own past (`prompt_lookup`), or with the draft model.
"""

from collections import abc, deque
from typing import Literal

from stonechat_models.engine.prompts.lookup import (
    PAST_KEYS,
    AdaptiveDrafter,
    Drafter,
    PastFollower,
    PositionIndex,
    TextFollower,
)
from stonechat_models.engine.sequence import DraftState, Scheduled, Sequence, SequenceGroup
from stonechat_models.engine.speculation.draft_control import DraftControl
from stonechat_models.engine.speculation.draft_model import DraftModel, PassTime
from stonechat_models.engine.speculation.drafting import max_draft_tokens
from stonechat_models.model_info import ModelInfo

PromptLookup = Literal["off", "auto", "on"]
"""Whether tokens are drafted from a sequence's own text; auto: where that is expected to pay."""

MAX_PLAIN_STEPS = 1024
"""Of the steps without draft tokens, so many are remembered until something is learned from them.
"""


class Speculation:
    """Gives sequences what they draft with, plans the drafts of steps, and learns from steps."""

    def __init__(
        self, info: ModelInfo, prompt_lookup: PromptLookup, model: DraftModel | None = None
    ) -> None:
        """`info` is that of the model that is served, and `model` is the draft model."""
        self.model = model
        self.control: DraftControl | None = None
        """Decides how much is drafted, by measured times; None if fixed rules do."""
        if prompt_lookup == "auto" or model is not None:
            self.control = DraftControl(max_draft_tokens(info.max_batch_tokens), model)
        self.num_drafted = self.num_accepted = 0
        self.num_model_drafted = self.num_model_accepted = 0
        """Those of the draft model; the ones above include them."""
        self._prompt_lookup = prompt_lookup
        self._vocab_size = info.vocab_size
        self._times: PassTime | None = None
        """What the draft model took for the current step."""
        self._plain_steps: deque[tuple[int, float]] = deque(maxlen=MAX_PLAIN_STEPS)
        """Steps without draft tokens: their numbers of sequences, and their seconds. What they
        teach is only needed once a sequence might draft."""

    def add(self, group: SequenceGroup) -> None:
        """Give the sequences of a new request what they draft with."""
        prediction, sequences = group.request.prediction_token_ids, group.sequences
        if self.model is not None and group.media is None:
            for sequence in sequences:
                sequence.draft_state = DraftState(self.model.rate)
        if prediction:
            followers = TextFollower.for_choices(prediction, len(sequences))
            for sequence, follower in zip(sequences, followers, strict=True):
                sequence.drafter = Drafter(follower, self._vocab_size)
        elif self._prompt_lookup != "off":
            prompt_ids, is_one = group.request.prompt_token_ids, len(sequences) == 1
            prompt = None if is_one else PositionIndex(prompt_ids, PAST_KEYS)
            for sequence in sequences:
                past = PositionIndex(sequence.token_ids, PAST_KEYS, prompt)
                if self._prompt_lookup == "auto":
                    sequence.past = past
                else:
                    follower = PastFollower(sequence.token_ids, past)
                    sequence.drafter = Drafter(follower, self._vocab_size)

    def follow_past(self, sequence: Sequence, past: PositionIndex) -> None:
        """Begin to follow a sequence in its past, where its last tokens occur."""
        follower = PastFollower(sequence.token_ids, past)
        sequence.drafter = AdaptiveDrafter(follower, self._vocab_size)
        sequence.past = None

    def plan(self, decoding: abc.Sequence[Sequence], *, is_alone: bool) -> None:
        """Set how many tokens each of the sequences that decode drafts in the next step.

        `is_alone`: the step computes no prompt. Otherwise nothing is drafted. Only with `control`.
        """
        assert self.control is not None
        self.control.lagging = None
        drafters: list[AdaptiveDrafter] = []
        for sequence in decoding:
            drafter = sequence.drafter
            if isinstance(drafter, AdaptiveDrafter):
                drafter.set_length(0)
                if drafter.has_match:
                    drafters.append(drafter)
            if sequence.draft_state is not None:
                sequence.draft_state.length = 0
        if is_alone and (drafters or self.model is not None):
            self._learn_plain_steps()
            self.control.plan(decoding, drafters)

    def draft(self, items: abc.Sequence[Scheduled], block_copies: list[tuple[int, int]]) -> None:
        """Let the draft model draft for the items that want it, after these copies of blocks."""
        assert self.model is not None
        assert self.control is not None
        if block_copies:
            self.model.model.copy_blocks(block_copies)
        self._times = self.model.run(items, self.control.lagging)

    def judge(self, item: Scheduled, num_accepted: int) -> None:
        """Learn from how many of the item's draft tokens were right."""
        num_drafted, drafter = len(item.draft), item.sequence.drafter
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        if item.num_wanted and self.model is not None:
            self.model.judge(item.sequence, num_drafted, num_accepted)
            self.num_model_drafted += num_drafted
            self.num_model_accepted += num_accepted
        elif drafter is not None:
            drafter.judge(num_drafted, num_accepted)

    def finish(self, items: abc.Sequence[Scheduled], seconds: float) -> None:
        """Learn from the time that a step took. Only with `control`."""
        assert self.control is not None
        if self._times is not None:
            seconds -= self.control.pass_costs.observe(self._times)
        num_drafts = 0
        for item in items:
            if item.num_tokens != 1 or not item.reaches_end or item.num_again:
                return
            num_drafts += len(item.draft)
        if num_drafts:
            self._learn_plain_steps()
            self.control.costs.observe(len(items), seconds, num_drafts)
        elif items:
            self._plain_steps.append((len(items), seconds))

    def _learn_plain_steps(self) -> None:
        assert self.control is not None
        while self._plain_steps:
            self.control.costs.observe(*self._plain_steps.popleft())
