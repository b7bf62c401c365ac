"""The engine's step: schedule, run, sample, postprocess. Synchronous; one thread owns it."""

import logging
import math
import secrets
import time
import traceback
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import CausalModel, StatefulModel
from stonechat_models.engine.batch import place_of
from stonechat_models.engine.draft_control import DraftControl
from stonechat_models.engine.draft_model import DraftModel, PassTime
from stonechat_models.engine.drafting import max_draft_tokens
from stonechat_models.engine.embeddings import finish_embedding
from stonechat_models.engine.image_steps import ENCODING_FAILED, ImageSteps
from stonechat_models.engine.prompt_lookup import (
    PAST_KEYS,
    AdaptiveDrafter,
    Drafter,
    PastFollower,
    PositionIndex,
    TextFollower,
)
from stonechat_models.engine.scheduler import Scheduler
from stonechat_models.engine.sequence import DraftState, Scheduled, Sequence, SequenceGroup
from stonechat_models.engine.state_slots import StateSlots
from stonechat_models.engine.step import InFlightStep
from stonechat_models.errors import StepError
from stonechat_models.model_info import EngineStats
from stonechat_models.sampling.state import (
    NOT_FINITE,
    RequestTensors,
    SampledTokens,
    SamplerLike,
    SamplingState,
    TokenConstraint,
)
from stonechat_models.types import FinishReason, GenerateRequest, TokenOutput

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

STEP_FAILED = "the model failed on this request"
MAX_CONSECUTIVE_FAILED_STEPS = 8

PromptLookup = Literal["off", "auto", "on"]
"""Whether tokens are drafted from a sequence's own text; auto: where that is expected to pay."""


@dataclass(slots=True)
class StepCounters:
    """Counters of the engine since its start."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_model_drafted_tokens: int = 0
    num_accepted_model_draft_tokens: int = 0
    """Those of the draft model; the ones above include them."""
    num_failed_steps: int = 0
    num_consecutive_failed_steps: int = 0
    """Consecutive steps in which the model failed for every sequence. A row that cannot be sampled
    (for example, its grammar allows nothing) does not count: no request may stop the engine."""
    last_step_seconds: float = 0.0


class Engine:
    """Generates for many requests at once with one model.

    Sequences with a prediction get draft tokens, which a step verifies. With `prompt_lookup` other
    sequences do too: wherever their own text repeats, or where `DraftControl` expects a gain.
    Without a `device` the model computes on the host, with arrays of numpy.

    `step` never raises for a fault of the model. It runs the items of a failed step again in halves
    until it knows the sequences that fail alone. Only those end, with `FinishReason.ERROR`.
    """

    def __init__(
        self,
        model: CausalModel,
        sampler: SamplerLike,
        *,
        eos_token_ids: frozenset[int],
        device: "torch.device | None",
        prefix_caching: bool = True,
        prompt_lookup: PromptLookup = "off",
        draft_model: DraftModel | None = None,
        image_cache_bytes: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`image_cache_bytes`: how many bytes of encoded images are kept for later requests.
        `clock` returns seconds. Draft tokens that are tried by themselves go by it.
        """
        info = model.info
        self.model = model
        self.sampler = sampler
        self.eos_token_ids = eos_token_ids
        self.place = place_of(device)
        self.max_model_len = info.max_model_len
        self.images = None
        """None: the model takes no images."""
        if info.images is not None:
            self.images = ImageSteps(model, info.images, self.place, image_cache_bytes)
        self.counters = StepCounters()
        self.draft_control: DraftControl | None = None
        """Decides about draft tokens; None if fixed rules do."""
        if prompt_lookup == "auto" or draft_model is not None:
            max_tokens = max_draft_tokens(info.max_batch_tokens)
            self.draft_control = DraftControl(max_tokens, draft_model)
        self.draft_model = draft_model
        self.scheduler = Scheduler(
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            max_batch_tokens=info.max_batch_tokens,
            max_num_seqs=info.max_num_seqs,
            prefix_caching=prefix_caching,
            states=StateSlots(
                info.num_state_slots,
                info.max_num_seqs,
                info.block_size,
                exact_chunks=info.exact_chunks,
                prefix_caching=prefix_caching,
            )
            if info.num_state_slots
            else None,
            max_prompt_rows=info.max_prompt_rows,
            draft_control=self.draft_control,
        )
        self._prompt_lookup = prompt_lookup
        self._adapters = {adapter.name: i for i, adapter in enumerate(info.adapters)}
        self._clock = clock
        self._scheduled: list[Scheduled] = []
        self._draft_times: PassTime | None = None
        """What the current step computes, and what the draft model took for it."""
        self._num_processed = self._num_failed = 0
        """Items of the current step whose result is known, and those whose model failed."""
        self._requests: dict[str, SequenceGroup] = {}
        self._ended: list[TokenOutput] = []
        """The ends of requests that could not be part of the current step."""

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    @property
    def is_broken(self) -> bool:
        """True after several consecutive steps failed for every sequence: the device or the model
        does not work any more."""
        return self.counters.num_consecutive_failed_steps >= MAX_CONSECUTIVE_FAILED_STEPS

    def add(
        self, request: GenerateRequest, constraints: abc.Sequence[TokenConstraint | None] = ()
    ) -> None:
        """Queue a request. `constraints` is empty or has one entry per choice."""
        group = SequenceGroup(request)
        if request.adapter:
            group.adapter = self._adapters[request.adapter]
        if request.images:
            assert self.images is not None, "images are checked before"
            group.images = self.images.of_request(request.images)
        params = request.params
        if params.prompt_logprobs is not None:
            group.prompt_logprobs = []
        seed = secrets.randbits(64) - 2**63 if params.seed is None else params.seed
        prompt = list(request.prompt_token_ids)
        room = self.max_model_len - len(prompt)
        tensors = RequestTensors()
        for index in range(params.n):
            state = SamplingState(params, seed, index, prompt, tensors=tensors)
            state.constraint = constraints[index] if constraints else None
            if params.min_tokens > 0:
                state.suppressed_ids = (*self.eos_token_ids, *params.stop_token_ids)
            group.sequences.append(
                Sequence(
                    group=group,
                    sampling=state,
                    token_ids=list(prompt),
                    num_prompt_tokens=len(prompt),
                    max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                )
            )
        # A recurrent state cannot be taken back to the last accepted draft token.
        may_draft = request.prediction_token_ids or self._prompt_lookup != "off"
        if self.scheduler.states is None and request.embedding is None:
            if may_draft:
                self._add_drafters(group)
            if self.draft_model is not None and group.images is None:
                for sequence in group.sequences:
                    sequence.draft_state = DraftState(self.draft_model.rate)
        self._requests[request.request_id] = group
        self.scheduler.add(group)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it, and free its blocks. Unknown ids are ignored."""
        group = self._requests.get(request_id)
        if group is None:
            return
        for sequence in [s for s in group.sequences if index is None or s.index == index]:
            self._finish(sequence, FinishReason.ABORT)
        if self.scheduler.states is not None:
            self._free_states()

    def step(self) -> list[TokenOutput]:
        """Run one step. Return one output per new token and per failed sequence."""
        start_time = self._clock()
        counters = self.counters
        num_failed_steps = counters.num_failed_steps
        self._num_processed = self._num_failed = 0
        with self.place.computing():
            outputs = self._step()
            if self._ended:
                outputs += self._ended
                self._ended = []
            if self.scheduler.states is not None:
                self._free_states()
        if self._num_processed > 0:
            all_failed = self._num_failed == self._num_processed
            counters.num_consecutive_failed_steps = (
                counters.num_consecutive_failed_steps + 1 if all_failed else 0
            )
        counters.num_steps += 1
        counters.last_step_seconds = seconds = self._clock() - start_time
        items, self._scheduled = self._scheduled, []
        if self.draft_control is not None and counters.num_failed_steps == num_failed_steps:
            self.draft_control.finish(items, seconds, self._draft_times)
        return outputs

    def stats(self) -> EngineStats:
        scheduler, counters, images = self.scheduler, self.counters, self.images
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=scheduler.pool.num_blocks,
            num_used_blocks=scheduler.pool.num_used,
            num_steps=counters.num_steps,
            num_prompt_tokens=counters.num_prompt_tokens,
            num_generated_tokens=counters.num_generated_tokens,
            num_cache_queried_tokens=scheduler.num_queried_tokens,
            num_cache_hit_tokens=scheduler.num_hit_tokens,
            num_drafted_tokens=counters.num_drafted_tokens,
            num_accepted_draft_tokens=counters.num_accepted_draft_tokens,
            num_model_drafted_tokens=counters.num_model_drafted_tokens,
            num_accepted_model_draft_tokens=counters.num_accepted_model_draft_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_failed_steps=counters.num_failed_steps,
            num_encoded_images=0 if images is None else images.num_encoded,
            num_image_cache_hits=0 if images is None else images.num_hits,
            image_encode_seconds=0.0 if images is None else images.encode_seconds,
            last_step_seconds=counters.last_step_seconds,
        )

    def _add_drafters(self, group: SequenceGroup) -> None:
        """Give the sequences what drafts from a prediction, or an index of their own past."""
        request, sequences, vocab_size = group.request, group.sequences, self.model.info.vocab_size
        if request.prediction_token_ids:
            followers = TextFollower.for_choices(request.prediction_token_ids, len(sequences))
            for sequence, follower in zip(sequences, followers, strict=True):
                sequence.drafter = Drafter(follower, vocab_size)
            return
        prompt = PositionIndex(request.prompt_token_ids, PAST_KEYS) if len(sequences) > 1 else None
        for sequence in sequences:
            past = PositionIndex(sequence.token_ids, PAST_KEYS, prompt)
            if self._prompt_lookup == "auto":
                sequence.past = past
            else:
                sequence.drafter = Drafter(PastFollower(sequence.token_ids, past), vocab_size)

    def _draft_from_past(self, sequence: Sequence, past: PositionIndex) -> None:
        """Begin to follow the sequence in its past, where its last tokens occur."""
        follower = PastFollower(sequence.token_ids, past)
        sequence.drafter = AdaptiveDrafter(follower, self.model.info.vocab_size)
        sequence.past = None

    # --- one step ---

    def _step(self) -> list[TokenOutput]:
        items = self._schedule()
        return self._run(items) if items else []

    def _schedule(self) -> list[Scheduled]:
        output = self.scheduler.schedule()
        if output.block_copies:
            self.model.copy_blocks(output.block_copies)
        if output.state_copies:
            cast(StatefulModel, self.model).copy_states(output.state_copies)
        if self.draft_model is not None and self.draft_control is not None:
            if output.block_copies:
                self.draft_model.model.copy_blocks(output.block_copies)
            lagging = self.draft_control.lagging
            self._draft_times = self.draft_model.run(output.scheduled, lagging)
        self._scheduled = output.scheduled
        if self.images is not None and self.images.num_live:
            return self._with_features(self.images, output.scheduled)
        return output.scheduled

    def _with_features(self, images: ImageSteps, items: list[Scheduled]) -> list[Scheduled]:
        """Get the features that the items need. Return the items that are part of the step.

        Requests whose images cannot be encoded end.
        """
        failed, waiting = images.prepare(items)
        for item in waiting:
            self.scheduler.cancel(item)
        for group in failed:
            self._ended += [
                self._end(sequence, FinishReason.ERROR, ENCODING_FAILED)
                for sequence in [*group.sequences]
            ]
        return [item for item in items if not item.is_dropped]

    def _free_states(self) -> None:
        states = self.scheduler.states
        if states is not None and (slots := states.take_released()):
            cast(StatefulModel, self.model).free_states(slots)

    def _run(self, items: list[Scheduled]) -> list[TokenOutput]:
        try:
            step = self._launch(items)
            step.sample(self.sampler)
            tokens = step.read()
        except Exception as error:
            return self._run_in_halves(items, error)
        return self._postprocess(items, tokens)

    def _launch(self, items: list[Scheduled], after: InFlightStep | None = None) -> InFlightStep:
        images = self.images
        return InFlightStep(
            self.model,
            items,
            block_size=self.scheduler.block_size,
            place=self.place,
            after=after,
            images=images if images is not None and images.num_live else None,
        )

    def _run_in_halves(self, items: list[Scheduled], error: Exception) -> list[TokenOutput]:
        """Run the items of a step that failed with `error` again. One that is alone fails."""
        self.counters.num_failed_steps += 1
        traceback.clear_frames(error.__traceback__)  # they keep the step's tensors alive
        items = [item for item in items if not item.is_dropped]
        if len(items) > 1:
            logger.warning("a step of %d sequences failed; it runs again in halves", len(items))
            middle = len(items) // 2
            return self._run_again(items[:middle]) + self._run_again(items[middle:])
        if not items:
            return []
        sequence = items[0].sequence
        logger.error(
            "request %s failed in a step", sequence.group.request.request_id, exc_info=error
        )
        self._num_processed += 1
        self._num_failed += 1
        return [self._end(sequence, FinishReason.ERROR, STEP_FAILED)]

    def _run_again(self, items: list[Scheduled]) -> list[TokenOutput]:
        items = [item for item in items if not item.is_dropped]
        if self.images is not None and self.images.num_live:
            items = self._with_features(self.images, items)
        return self._run(items) if items else []

    # --- the results of a step ---

    def _postprocess(self, items: list[Scheduled], tokens: SampledTokens) -> list[TokenOutput]:
        outputs: list[TokenOutput] = []
        finish_step = self.scheduler.finish_step
        for item in items:
            if item.is_dropped:
                continue
            self._num_processed += 1
            sequence = item.sequence
            num_prompt = sequence.num_prompt_tokens - item.start
            if num_prompt > 0:
                self.counters.num_prompt_tokens += min(item.num_tokens, num_prompt)
            finish_step(item)
            if sequence.group.prompt_logprobs is not None:
                outputs += self._accept_prompt_logprobs(item, tokens)
            elif item.reaches_end:
                outputs += self._accept_rows(item, tokens)
        return outputs

    def _accept_prompt_logprobs(self, item: Scheduled, tokens: SampledTokens) -> list[TokenOutput]:
        """Accept those of the item. The first output after the prompt has all of them."""
        group = item.sequence.group
        if any(math.isnan(entry.logprob) for entry in item.prompt_logprobs):
            return [self._end(s, FinishReason.ERROR, NOT_FINITE) for s in [*group.sequences]]
        known = [*(group.prompt_logprobs or ()), *item.prompt_logprobs]
        group.prompt_logprobs = None if item.reaches_end else known
        if not item.reaches_end:
            return []
        first, *others = self._accept_rows(item, tokens)
        return [msgspec.structs.replace(first, prompt_logprobs=tuple(known)), *others]

    def _accept_rows(self, item: Scheduled, tokens: SampledTokens) -> list[TokenOutput]:
        """Accept the token of the item's first row, and one more per draft token that was right."""
        sequence, draft, row = item.sequence, item.draft, item.row
        if item.vector is not None:
            return [self._end_with_embedding(sequence, item.vector)]
        if sequence.max_tokens == 0:
            return [self._end(s, FinishReason.LENGTH) for s in [*sequence.group.sequences]]
        outputs = [self._accept(sequence, tokens, row)]
        for i, draft_id in enumerate(draft):
            if sequence.finish_reason is not None or tokens.token_ids[row + i] != draft_id:
                break
            self.scheduler.accept_draft_token(sequence)
            outputs.append(self._accept(sequence, tokens, row + i + 1))
        if draft:
            self._judge(item, len(outputs) - 1)
        return outputs

    def _judge(self, item: Scheduled, num_accepted: int) -> None:
        """Learn from how many of the item's draft tokens were right."""
        counters, sequence, num_drafted = self.counters, item.sequence, len(item.draft)
        counters.num_drafted_tokens += num_drafted
        counters.num_accepted_draft_tokens += num_accepted
        if item.num_wanted and self.draft_model is not None:
            self.draft_model.judge(sequence, num_drafted, num_accepted)
            counters.num_model_drafted_tokens += num_drafted
            counters.num_accepted_model_draft_tokens += num_accepted
        elif sequence.drafter is not None:
            sequence.drafter.judge(num_drafted, num_accepted)

    def _accept(self, sequence: Sequence, tokens: SampledTokens, row: int) -> TokenOutput:
        """Add the token of a row to the sequence, which may end with it or with an error."""
        if row in tokens.errors:
            return self._end(sequence, FinishReason.ERROR, tokens.errors[row])
        self.counters.num_generated_tokens += 1
        token_id, logprobs = tokens.token_ids[row], tokens.logprobs[row]
        try:
            is_predicted = sequence.append(token_id)
        except StepError as error:
            return self._end(sequence, FinishReason.ERROR, str(error))
        past = sequence.past
        if past is not None and past.find(tuple(sequence.token_ids[-PAST_KEYS:])):
            self._draft_from_past(sequence, past)
        group, state = sequence.group, sequence.sampling
        params, constraint = state.params, state.constraint
        is_eos = token_id in self.eos_token_ids and not params.ignore_eos
        is_stop_token = is_eos or token_id in params.stop_token_ids
        finish_reason: FinishReason | None = None
        if is_stop_token or (constraint is not None and constraint.is_finished):
            finish_reason = FinishReason.STOP
        elif state.num_output_tokens >= sequence.max_tokens:
            finish_reason = FinishReason.LENGTH
        output = TokenOutput(
            group.request.request_id,
            sequence.index,
            (token_id,),
            None if logprobs is None else (logprobs,),
            finish_reason,
            group.num_cached_tokens,
            stop_token_id=token_id if is_stop_token else None,
            num_cache_written_tokens=group.num_cache_written_tokens,
            scheduled_time=group.scheduled_time,
            num_predicted=int(is_predicted),
        )
        if finish_reason is not None:
            self._finish(sequence, finish_reason)
        return output

    def _end_with_embedding(
        self, sequence: Sequence, vector: npt.NDArray[np.float32]
    ) -> TokenOutput:
        params, info = sequence.group.request.embedding, self.model.info.embedding
        assert params is not None
        assert info is not None
        try:
            embedding = finish_embedding(vector, params, info)
        except StepError as error:
            return self._end(sequence, FinishReason.ERROR, str(error))
        output = self._end(sequence, FinishReason.STOP)
        return msgspec.structs.replace(output, embedding=embedding)

    def _end(
        self, sequence: Sequence, reason: FinishReason, error: str | None = None
    ) -> TokenOutput:
        """End a sequence without a token."""
        group = sequence.group
        self._finish(sequence, reason)
        return TokenOutput(
            request_id=group.request.request_id,
            index=sequence.index,
            token_ids=(),
            logprobs=None,
            finish_reason=reason,
            num_cached_tokens=group.num_cached_tokens,
            num_cache_written_tokens=group.num_cache_written_tokens,
            scheduled_time=group.scheduled_time,
            error=error,
        )

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        self.scheduler.remove(sequence)
        group = sequence.group
        if not group.sequences:
            del self._requests[group.request.request_id]
            if group.images is not None and self.images is not None:
                self.images.num_live -= 1
