"""Turns the engine's token ids into what a client may see: text, stop strings, log-probabilities.

Rules per choice:
- The end token (EOS or one of `stop_token_ids`) is in `token_ids` and counts in `num_tokens`. It
  has no text and no logprobs entry. Only one of `stop_token_ids` has both, if
  `include_stop_str_in_output` is set. `stop_reason` is None for EOS, else the token's id.
- A stop string ends the choice at the token that completes it. Later tokens are ignored, and
  `stop_reason` is the string. Stop strings do not count before `min_tokens` tokens, nor in
  reasoning (`stop_scope`). Text that may begin reasoning is held back until that is clear.
- Skipped special tokens count in `num_tokens` and have no logprobs entry.
- A logprobs entry is released with the character in which its token begins. So the joined bytes
  of the entries are those of the text, except for a leading space that the tokenizer drops, a
  token that reaches into a stop string, and invalid UTF-8. An entry that lies wholly in a removed
  stop string is removed too.
"""

import time
from collections import deque
from collections.abc import Sequence

import msgspec

from stonechat_models.text.detokenizer import Detokenizer
from stonechat_models.text.stop_scope import ScopeTracker
from stonechat_models.text.stop_strings import StopStrings
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import (
    CompletionDelta,
    FinishReason,
    GenerateRequest,
    LogprobEntry,
    RequestOutput,
    RequestTimings,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
    TopLogprob,
)


class OutputProcessor:
    """Turns the outputs of one request, from its first token to its last, into deltas."""

    def __init__(self, tokenizer: Tokenizer, request: GenerateRequest) -> None:
        params = request.params
        stops = StopStrings(params.stop) if params.stop else None
        self._request = request
        self._choices = [_ChoiceOutput(i, tokenizer, params, stops) for i in range(params.n)]
        self._num_unfinished = params.n
        self._stopped_choices: list[int] = []
        self._num_cached_tokens = 0
        self._num_cache_written_tokens = 0
        self._error: str | None = None
        self._scheduled_time: float | None = None
        self._first_token_time: float | None = None
        self._finished_time: float | None = None

    def process(self, outputs: Sequence[TokenOutput]) -> RequestOutput:
        """Process the outputs of a step. Return one delta for each choice that they concern.

        Outputs of a choice that has already ended are ignored.
        """
        changed_choices: dict[int, _ChoiceOutput] = {}
        for output in outputs:
            self._record(output)
            choice = self._choices[output.index]
            if choice.finish_reason is not None:
                continue
            self._error = self._error or output.error
            choice.add(output)
            changed_choices[output.index] = choice
            if choice.finish_reason is not None:
                self._num_unfinished -= 1
                if output.finish_reason is None:
                    self._stopped_choices.append(output.index)
        if self._num_unfinished == 0 and self._finished_time is None:
            self._finished_time = time.monotonic()
        return RequestOutput(
            request_id=self._request.request_id,
            deltas=tuple([choice.take_delta() for choice in changed_choices.values()]),
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_cached_tokens=self._num_cached_tokens,
            finished=self._num_unfinished == 0,
            timings=self._timings(),
            num_cache_written_tokens=self._num_cache_written_tokens,
            error=self._error,
        )

    def take_stopped(self) -> list[int]:
        """Return, once each, the choices that a stop string ended but the engine still runs."""
        choices, self._stopped_choices = self._stopped_choices, []
        return choices

    def _record(self, output: TokenOutput) -> None:
        self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        self._num_cache_written_tokens = max(
            self._num_cache_written_tokens, output.num_cache_written_tokens
        )
        if self._scheduled_time is None:
            self._scheduled_time = output.scheduled_time
        if self._first_token_time is None and output.token_ids:
            self._first_token_time = time.monotonic()

    def _timings(self) -> RequestTimings:
        return RequestTimings(
            arrival=self._request.arrival_time,
            scheduled=self._scheduled_time,
            first_token=self._first_token_time,
            finished=self._finished_time,
        )


def join_outputs(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """Join successive outputs of a request into one.

    It has all their deltas. Its other fields are those of the last output.
    """
    last = outputs[-1]
    if len(outputs) == 1:
        return last
    deltas = tuple([delta for output in outputs for delta in output.deltas])
    return msgspec.structs.replace(last, deltas=deltas)


class _ChoiceOutput:
    """One choice: its text that is not released yet, and what is new since the last delta."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        params: SamplingParams,
        stops: StopStrings | None,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self._index = index
        self._tokenizer = tokenizer
        self._params = params
        self._stop_strings = stops
        self._stops = stops.new_match() if stops else None
        self._scope = ScopeTracker(params.stop_scope) if stops and params.stop_scope else None
        self._call_markers = StopStrings(params.unstoppable_after).new_match()
        self._is_blank = True
        self._detokenizer = Detokenizer(tokenizer)
        self._skipped_ids = tokenizer.special_ids if params.skip_special_tokens else frozenset()
        self._num_tokens = 0
        self._shows_stop = params.include_stop_str_in_output
        self._held_text = ""
        """The end of the text, which may become a stop string. It is released already if the output
        includes stop strings."""
        self._num_released = 0
        self._entries: deque[tuple[int, LogprobEntry]] = deque()
        self._stop_reason: str | int | None = None
        self._new_text: list[str] = []
        self._new_ids: list[int] = []
        self._new_entries: list[LogprobEntry] = []

    def add(self, output: TokenOutput) -> None:
        """Add tokens until one completes a stop string. End the choice if the output says so."""
        logprobs = output.logprobs if self._params.top_logprobs is not None else None
        last = len(output.token_ids) - 1
        for i, token_id in enumerate(output.token_ids):
            self._num_tokens += 1
            self._new_ids.append(token_id)
            is_end = i == last and output.stop_token_id is not None
            if token_id in self._skipped_ids or (is_end and not self._shows_end(token_id)):
                continue
            if logprobs is not None:
                start = self._detokenizer.start_of(token_id)
                self._entries.append((start, self._entry(logprobs[i])))
            if self._add_text(self._detokenizer.add(token_id)):
                return
        if output.finish_reason is not None:
            self._end(output.finish_reason, output.stop_token_id)

    def take_delta(self) -> CompletionDelta:
        """Return what is new since the last call."""
        delta = CompletionDelta(
            index=self._index,
            text="".join(self._new_text),
            token_ids=tuple(self._new_ids),
            logprobs=None if self._params.top_logprobs is None else tuple(self._new_entries),
            num_tokens=len(self._new_ids),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
        self._new_text, self._new_ids, self._new_entries = [], [], []
        return delta

    def _shows_end(self, token_id: int) -> bool:
        return self._shows_stop and not self._is_eos(token_id)

    def _is_eos(self, token_id: int) -> bool:
        return token_id in self._tokenizer.eos_token_ids and not self._params.ignore_eos

    def _add_text(self, text: str, is_last: bool = False) -> bool:
        """Release as much text as is safe. Return True when a stop string has ended the choice."""
        if self._scope is None:
            return self._add_answer(text)
        for piece, is_in_scope in self._scope.split(text, is_last):
            if not is_in_scope:
                self._add_reasoning(piece)
            elif self._add_answer(piece):
                return True
        return False

    def _add_reasoning(self, text: str) -> None:
        if self._stop_strings is not None and self._stops is not None:
            self._stops = self._stop_strings.new_match()
        if not self._shows_stop:
            self._release(self._held_text)
        self._held_text = ""
        self._release(text)

    def _add_answer(self, text: str) -> bool:
        if not text:
            return False
        start = self._unstoppable_start(text) if self._stops is not None else -1
        if start < 0:
            return self._add_stoppable(text)
        if self._add_stoppable(text[:start]):
            return True
        if not self._shows_stop:
            self._release(self._held_text)
        self._stops, self._held_text = None, ""
        self._release(text[start:])
        return False

    def _unstoppable_start(self, text: str) -> int:
        """Return the index in `text` from which no stop string counts any more, or -1."""
        stripped = text.lstrip() if self._is_blank else ""
        if stripped:
            self._is_blank = False
            if stripped[0] == self._params.unstoppable_first:
                return len(text) - len(stripped)
        return self._call_markers.find(text)[0]

    def _add_stoppable(self, text: str) -> bool:
        stops = self._stops
        if stops is None:
            self._release(text)
            return False
        joined, num_old = self._held_text + text, len(self._held_text)
        first = num_old if self._shows_stop else 0
        if self._num_tokens < self._params.min_tokens:
            stops.skip(text)
        else:
            end, stop = stops.find(text)
            if end >= 0:
                end += num_old
                self._release(joined[first : end if self._shows_stop else end - len(stop)])
                self._held_text = ""
                self._entries.clear()
                self.finish_reason, self._stop_reason = FinishReason.STOP, stop
                return True
        split = len(joined) - stops.num_held
        self._held_text = joined[split:]
        self._release(joined[first:] if self._shows_stop else joined[:split])
        return False

    def _end(self, reason: FinishReason, stop_token_id: int | None) -> None:
        """End the choice as the engine says, unless the last bytes complete a stop string."""
        if self._add_text(self._detokenizer.flush(), is_last=True):
            if reason in (FinishReason.ABORT, FinishReason.ERROR):
                self.finish_reason, self._stop_reason = reason, None
            return
        if not self._shows_stop:
            self._release(self._held_text)
        self._held_text = ""
        self._new_entries.extend(entry for _, entry in self._entries)
        self._entries.clear()
        self.finish_reason = reason
        if stop_token_id is not None and not self._is_eos(stop_token_id):
            self._stop_reason = stop_token_id

    def _release(self, text: str) -> None:
        """Release `text` and the entries that begin in it."""
        if not text:
            return
        self._new_text.append(text)
        self._num_released += len(text)
        entries = self._entries
        while entries and entries[0][0] < self._num_released:
            self._new_entries.append(entries.popleft()[1])

    def _entry(self, logprobs: TokenLogprobs) -> LogprobEntry:
        tokenizer = self._tokenizer
        return LogprobEntry(
            token_id=logprobs.token_id,
            token=tokenizer.token_text(logprobs.token_id),
            bytes=tokenizer.token_bytes(logprobs.token_id),
            logprob=logprobs.logprob,
            top=tuple(
                TopLogprob(i, tokenizer.token_text(i), tokenizer.token_bytes(i), value)
                for i, value in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
            ),
        )
