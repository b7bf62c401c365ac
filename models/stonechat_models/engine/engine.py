"""The engine's step: schedule, run, sample, postprocess. Synchronous; one thread owns it."""

import logging
import math
import time
import traceback
from collections import abc
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import CausalModel, StatefulModel
from stonechat_models.engine.batch import place_of
from stonechat_models.engine.cache.state_slots import StateSlots
from stonechat_models.engine.embeddings import finish_embedding, finish_score
from stonechat_models.engine.media_steps import ENCODING_FAILED, Encodings, MediaSteps
from stonechat_models.engine.prompts.lookup import PAST_KEYS
from stonechat_models.engine.scheduler import Scheduler
from stonechat_models.engine.sequence import Scheduled, Sequence, SequenceGroup
from stonechat_models.engine.speculation.draft_model import DraftModel
from stonechat_models.engine.speculation.speculation import PromptLookup, Speculation
from stonechat_models.engine.step import InFlightStep
from stonechat_models.errors import StepError
from stonechat_models.model_info import EngineStats, ModelInfo
from stonechat_models.sampling.state import (
    NOT_FINITE,
    SampledTokens,
    SamplerLike,
    TokenConstraint,
)
from stonechat_models.types import FinishReason, GenerateRequest, TokenOutput

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

STEP_FAILED = "the model failed on this request"
MAX_CONSECUTIVE_FAILED_STEPS = 8


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
        media_cache_bytes: int = 0,
        ranking_head: npt.NDArray[np.float32] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`media_cache_bytes`: how many bytes of encoded images and clips are kept for later.
        `ranking_head`: float32[H], of a reranker whose score is not made of logits.
        `clock` returns seconds. Draft tokens that are tried by themselves go by it.
        """
        info = model.info
        self.model = model
        self.sampler = sampler
        self.eos_token_ids = eos_token_ids
        self.place = place_of(device)
        self.media = None
        """None: the model takes text alone."""
        if info.media_token_ids:
            self.media = MediaSteps(model, self.place, media_cache_bytes)
        self.speculation = Speculation(info, prompt_lookup, draft_model)
        self.scheduler = _new_scheduler(info, self.speculation, prefix_caching=prefix_caching)
        self.num_steps = self.num_failed_steps = self.num_consecutive_failed_steps = 0
        """In a failed step the model failed; consecutive ones failed for every sequence. A row that
        cannot be sampled (for example, its grammar allows nothing) does not count: no request may
        stop the engine."""
        self.num_prompt_tokens = self.num_generated_tokens = 0
        self.last_step_seconds = 0.0
        self._adapters = {adapter.name: i for i, adapter in enumerate(info.adapters)}
        self._ranking_head = ranking_head
        self._clock = clock
        self._launch = partial(
            InFlightStep, place=self.place, block_size=info.block_size, media=self.media
        )
        """Launches the forward pass of some items."""
        self._scheduled: list[Scheduled] = []
        """What the current step computes."""
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
        return self.num_consecutive_failed_steps >= MAX_CONSECUTIVE_FAILED_STEPS

    def add(
        self, request: GenerateRequest, constraints: abc.Sequence[TokenConstraint | None] = ()
    ) -> None:
        """Queue a request. `constraints` is empty or has one entry per choice."""
        group = SequenceGroup(request)
        if request.adapter:
            group.adapter = self._adapters[request.adapter]
        if request.media:
            assert self.media is not None, "media are checked before"
            group.media = self.media.of_request(request.media)
        if request.params.prompt_logprobs is not None:
            group.prompt_logprobs = []
        group.add_sequences(constraints, self.model.info.max_model_len, self.eos_token_ids)
        # A recurrent state cannot be taken back to the last accepted draft token.
        if self.scheduler.states is None and request.embedding is None:
            self.speculation.add(group)
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
            self._free_states(self.scheduler.states)

    def step(self) -> list[TokenOutput]:
        """Run one step. Return one output per new token and per failed sequence."""
        start_time = self._clock()
        num_failed_steps = self.num_failed_steps
        self._num_processed = self._num_failed = 0
        with self.place.computing():
            outputs = self._step()
            if self._ended:
                outputs += self._ended
                self._ended = []
            if self.scheduler.states is not None:
                self._free_states(self.scheduler.states)
        if self._num_failed and self._num_failed == self._num_processed:
            self.num_consecutive_failed_steps += 1
        elif self._num_processed:
            self.num_consecutive_failed_steps = 0
        self.num_steps += 1
        self.last_step_seconds = self._clock() - start_time
        items, self._scheduled = self._scheduled, []
        if self.speculation.control is not None and self.num_failed_steps == num_failed_steps:
            self.speculation.finish(items, self.last_step_seconds)
        return outputs

    def stats(self) -> EngineStats:
        scheduler, speculation = self.scheduler, self.speculation
        images = audio = Encodings()
        if self.media is not None:
            images, audio = self.media.encodings("image"), self.media.encodings("audio")
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=scheduler.pool.num_blocks,
            num_used_blocks=scheduler.pool.num_used,
            num_steps=self.num_steps,
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_cache_queried_tokens=scheduler.prefix_cache.num_queried_tokens,
            num_cache_hit_tokens=scheduler.prefix_cache.num_hit_tokens,
            num_drafted_tokens=speculation.num_drafted,
            num_accepted_draft_tokens=speculation.num_accepted,
            num_model_drafted_tokens=speculation.num_model_drafted,
            num_accepted_model_draft_tokens=speculation.num_model_accepted,
            num_preemptions=scheduler.num_preemptions,
            num_failed_steps=self.num_failed_steps,
            num_encoded_images=images.num_encoded,
            num_image_cache_hits=images.num_hits,
            image_encode_seconds=images.seconds,
            num_encoded_audio=audio.num_encoded,
            num_audio_cache_hits=audio.num_hits,
            audio_encode_seconds=audio.seconds,
            last_step_seconds=self.last_step_seconds,
        )

    # --- one step: schedule, run, sample, postprocess ---

    def _step(self) -> list[TokenOutput]:
        items = self._schedule()
        return self._run(items) if items else []

    def _schedule(self) -> list[Scheduled]:
        output = self.scheduler.schedule()
        if output.block_copies:
            self.model.copy_blocks(output.block_copies)
        if output.state_copies:
            cast(StatefulModel, self.model).copy_states(output.state_copies)
        if self.speculation.model is not None:
            self.speculation.draft(output.scheduled, output.block_copies)
        self._scheduled = output.scheduled
        has_media = self.media is not None and self.media.num_live > 0
        return self._ready(output.scheduled) if has_media else output.scheduled

    def _run(self, items: list[Scheduled]) -> list[TokenOutput]:
        try:
            step = self._launch(self.model, items)
            step.sample(self.sampler)
            tokens = step.read()
        except Exception as error:
            return self._run_in_halves(items, error)
        return self._postprocess(items, tokens)

    def _run_in_halves(self, items: list[Scheduled], error: Exception) -> list[TokenOutput]:
        """Run the items of a step that failed with `error` again. One that is alone fails."""
        self.num_failed_steps += 1
        traceback.clear_frames(error.__traceback__)  # they keep the step's tensors alive
        items = [item for item in items if not item.is_dropped]
        outputs: list[TokenOutput] = []
        if len(items) > 1:
            logger.warning("a step of %d sequences failed; it runs again in halves", len(items))
            middle = len(items) // 2
            for half in (items[:middle], items[middle:]):
                if ready := self._ready(half):
                    outputs += self._run(ready)
        elif items:
            sequence = items[0].sequence
            request_id = sequence.group.request.request_id
            logger.error("request %s failed in a step", request_id, exc_info=error)
            self._num_processed += 1
            self._num_failed += 1
            outputs.append(self._end(sequence, FinishReason.ERROR, STEP_FAILED))
        return outputs

    def _ready(self, items: list[Scheduled]) -> list[Scheduled]:
        """Return the items that still count, once the features of their media are there.

        Requests whose media cannot be encoded end.
        """
        items = [item for item in items if not item.is_dropped]
        if self.media is None or not self.media.num_live:
            return items
        failed, waiting = self.media.prepare(items)
        for item in waiting:
            self.scheduler.cancel(item)
        for group in failed:
            self._ended += self._end_group(group, FinishReason.ERROR, ENCODING_FAILED)
        return [item for item in items if not item.is_dropped]

    def _free_states(self, states: StateSlots) -> None:
        if slots := states.take_released():
            cast(StatefulModel, self.model).free_states(slots)

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
                self.num_prompt_tokens += min(item.num_tokens, num_prompt)
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
            return self._end_group(group, FinishReason.ERROR, NOT_FINITE)
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
            return self._end_group(sequence.group, FinishReason.LENGTH)
        outputs = [self._accept(sequence, tokens, row)]
        for i, draft_id in enumerate(draft):
            if sequence.finish_reason is not None or tokens.token_ids[row + i] != draft_id:
                break
            self.scheduler.accept_draft_token(sequence)
            outputs.append(self._accept(sequence, tokens, row + i + 1))
        if draft:
            self.speculation.judge(item, len(outputs) - 1)
        return outputs

    def _accept(self, sequence: Sequence, tokens: SampledTokens, row: int) -> TokenOutput:
        """Add the token of a row to the sequence, which may end with it or with an error."""
        if row in tokens.errors:
            return self._end(sequence, FinishReason.ERROR, tokens.errors[row])
        self.num_generated_tokens += 1
        token_id, logprobs = tokens.token_ids[row], tokens.logprobs[row]
        try:
            is_predicted = sequence.append(token_id)
        except StepError as error:
            return self._end(sequence, FinishReason.ERROR, str(error))
        past = sequence.past
        if past is not None and past.find(tuple(sequence.token_ids[-PAST_KEYS:])):
            self.speculation.follow_past(sequence, past)
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
        params, info = sequence.group.request.embedding, self.model.info
        assert params is not None
        try:
            if info.ranking is not None:
                embedding = finish_score(vector, self._ranking_head, info.ranking)
            else:
                embedding = finish_embedding(vector, params, info.embedding)
        except StepError as error:
            return self._end(sequence, FinishReason.ERROR, str(error))
        return self._end(sequence, FinishReason.STOP, embedding=embedding)

    def _end_group(
        self, group: SequenceGroup, reason: FinishReason, error: str | None = None
    ) -> list[TokenOutput]:
        return [self._end(sequence, reason, error) for sequence in [*group.sequences]]

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: str | None = None,
        embedding: bytes | None = None,
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
            embedding=embedding,
        )

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        self.scheduler.remove(sequence)
        group = sequence.group
        if not group.sequences:
            del self._requests[group.request.request_id]
            if group.media is not None and self.media is not None:
                self.media.num_live -= 1


def _new_scheduler(info: ModelInfo, speculation: Speculation, *, prefix_caching: bool) -> Scheduler:
    """The scheduler for a model, with slots for its recurrent states if it keeps any."""
    states = None
    if info.num_state_slots:
        states = StateSlots(
            info.num_state_slots,
            info.max_num_seqs,
            info.block_size,
            exact_chunks=info.exact_chunks,
            prefix_caching=prefix_caching,
        )
    return Scheduler(
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_batch_tokens=info.max_batch_tokens,
        max_num_seqs=info.max_num_seqs,
        prefix_caching=prefix_caching,
        states=states,
        max_prompt_rows=info.max_prompt_rows,
        speculation=speculation if speculation.control is not None else None,
    )
