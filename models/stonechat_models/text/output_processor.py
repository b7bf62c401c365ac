"""Turns the engine's token ids into what a client may see: text, stop strings, log-probabilities.

Rules per choice:
- The end token (EOS or one of `stop_token_ids`) is in `token_ids` and counts in `num_tokens`. It
  has no text and no logprobs entry. Only one of `stop_token_ids` has both, if
  `include_stop_str_in_output` is set. `stop_reason` is None for EOS, else the token's id.
- A stop string ends the choice at the token that completes it. Later tokens are ignored, and
  `stop_reason` is the string. Stop strings do not count before `min_tokens` tokens, nor in
  reasoning (`StopRules`). Text that may begin reasoning is held back until that is clear.
- Skipped special tokens count in `num_tokens` and have no logprobs entry.
- With `continues_text`, tokens without text have an entry, too, whose `bytes` are empty.
- A logprobs entry is released with the character in which its token begins. So the joined bytes
  of the entries are those of the text, except for a leading space that the tokenizer drops, a
  token that reaches into a stop string, and invalid UTF-8. An entry that lies wholly in a removed
  stop string is removed too.
"""

import time
from collections import deque
from collections.abc import Sequence

import msgspec

from stonechat_models.text.logprob_entries import logprob_entry, prompt_entries
from stonechat_models.text.stop_filter import StopFilter
from stonechat_models.text.stop_strings import StopStrings
from stonechat_models.text.tokenizer import Detokenizer, Tokenizer
from stonechat_models.transcript import Transcript
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
)


class OutputProcessor:
    """Turns the outputs of one request, from its first token to its last, into deltas.

    The log-probabilities of the prompt are kept until `add_prompt_logprobs`.
    """

    def __init__(self, tokenizer: Tokenizer, request: GenerateRequest) -> None:
        params = request.params
        strings = StopStrings(params.stop.strings) if params.stop else None
        self._request = request
        self._tokenizer = tokenizer
        at_start = not params.continues_text or all(
            token_id in tokenizer.special_ids for token_id in request.prompt_token_ids
        )
        self._choices = [
            _ChoiceOutput(i, tokenizer, params, strings, at_start=at_start) for i in range(params.n)
        ]
        self._num_unfinished = params.n
        self.stopped_choices: list[int] = []
        """Choices that a stop string ended and the engine still runs. A reader takes them out."""
        self._num_cached_tokens = 0
        self._num_cache_written_tokens = 0
        self._error: str | None = None
        self._embedding: bytes | None = None
        self._transcript: Transcript | None = None
        self.prompt_logprobs: Sequence[TokenLogprobs] | None = None
        """The log-probabilities of the prompt that wait for `add_prompt_logprobs`."""
        self._scheduled_time: float | None = None
        self._first_token_time: float | None = None
        self._finished_time: float | None = None

    def process(self, outputs: Sequence[TokenOutput]) -> RequestOutput:
        """Process the outputs of a step. Return one delta for each choice that they concern.

        Outputs of a choice that has already ended are ignored.
        """
        changed_choices: dict[int, _ChoiceOutput] = {}
        for output in outputs:
            if output.num_cached_tokens > self._num_cached_tokens:
                self._num_cached_tokens = output.num_cached_tokens
            if output.num_cache_written_tokens > self._num_cache_written_tokens:
                self._num_cache_written_tokens = output.num_cache_written_tokens
            if self._first_token_time is None or output.finish_reason is not None:
                self._note_ends(output)
            choice = self._choices[output.index]
            if choice.finish_reason is not None:
                continue
            if output.error is not None:
                self._error = self._error or output.error
            choice.add(output)
            changed_choices[output.index] = choice
            if choice.finish_reason is not None:
                self._num_unfinished -= 1
                if output.finish_reason is None:
                    self.stopped_choices.append(output.index)
        if self._num_unfinished == 0 and self._finished_time is None:
            self._finished_time = time.monotonic()
        return RequestOutput(
            request_id=self._request.request_id,
            deltas=tuple([choice.take_delta() for choice in changed_choices.values()]),
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_cached_tokens=self._num_cached_tokens,
            finished=self._num_unfinished == 0,
            timings=RequestTimings(
                arrival=self._request.arrival_time,
                scheduled=self._scheduled_time,
                first_token=self._first_token_time,
                finished=self._finished_time,
            ),
            num_cache_written_tokens=self._num_cache_written_tokens,
            error=self._error,
            embedding=self._embedding,
            transcript=self._transcript,
        )

    def _note_ends(self, output: TokenOutput) -> None:
        """Note what the first outputs of a request have, or the last ones."""
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if self._scheduled_time is None:
            self._scheduled_time = output.scheduled_time
        if self._first_token_time is None and output.token_ids:
            self._first_token_time = time.monotonic()
        self._embedding = self._embedding or output.embedding
        self._transcript = self._transcript or output.transcript

    def add_prompt_logprobs(self, output: RequestOutput) -> RequestOutput:
        """Return the output with `prompt_logprobs`, which then wait no more.

        A long prompt takes a good part of a second. Any thread may do it.
        """
        logprobs, self.prompt_logprobs = self.prompt_logprobs, None
        assert logprobs is not None
        entries = prompt_entries(self._tokenizer, self._request.prompt_token_ids, logprobs)
        return msgspec.structs.replace(output, prompt_logprobs=entries)

    def end_choice(self, index: int) -> bool:
        """End a choice as a stop string would. Return whether it had not ended before."""
        choice = self._choices[index]
        if choice.finish_reason is not None:
            return False
        choice.finish_reason = FinishReason.STOP
        self._num_unfinished -= 1
        return True


def join_outputs(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """Join successive outputs of a request into one.

    It has all their deltas. Its other fields are those of the last output.
    """
    deltas = tuple([delta for output in outputs for delta in output.deltas])
    return msgspec.structs.replace(outputs[-1], deltas=deltas)


class _ChoiceOutput:
    """One choice: its text that is not released yet, and what is new since the last delta."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        params: SamplingParams,
        strings: StopStrings | None,
        *,
        at_start: bool,
    ) -> None:
        """`strings` are those of `params.stop`. With `at_start`, no text is before this one."""
        self.finish_reason: FinishReason | None = None
        self._index = index
        self._tokenizer = tokenizer
        self._params = params
        self._detokenizer = Detokenizer(tokenizer, at_start=at_start)
        self._stop_filter: StopFilter | None = None
        if params.stop is not None and strings is not None:
            shows_stop = params.include_stop_str_in_output
            self._stop_filter = StopFilter(strings, params.stop, shows_stop=shows_stop)
        self._is_plain = self._stop_filter is None and params.top_logprobs is None
        """Whether the text of each token is shown as it comes."""
        self._skipped_ids = tokenizer.special_ids if params.skip_special_tokens else frozenset()
        self._num_tokens = 0
        self._num_released = 0
        self._entries: deque[tuple[int, LogprobEntry]] = deque()
        self._stop_reason: str | int | None = None
        self._new_text: list[str] = []
        self._new_ids: list[int] = []
        self._new_entries: list[LogprobEntry] = []
        self._num_new_predicted = 0

    def add(self, output: TokenOutput) -> None:
        """Add tokens until one completes a stop string. End the choice if the output says so."""
        self._num_new_predicted += output.num_predicted
        if self._is_plain and output.finish_reason is None:
            self._new_ids += output.token_ids
            for token_id in output.token_ids:
                if token_id not in self._skipped_ids:
                    self._new_text.append(self._detokenizer.add(token_id))
            return
        logprobs = output.logprobs if self._params.top_logprobs is not None else None
        last = len(output.token_ids) - 1
        for i, token_id in enumerate(output.token_ids):
            self._num_tokens += 1
            self._new_ids.append(token_id)
            is_end = i == last and output.stop_token_id is not None
            has_text = token_id not in self._skipped_ids and (
                not is_end or self._shows_end(token_id)
            )
            if logprobs is not None and (has_text or self._params.continues_text):
                self._add_entry(logprobs[i], has_text=has_text)
            if not has_text:
                continue
            text = self._detokenizer.add(token_id)
            if self._stop_filter is not None:
                text = self._before_stop(self._stop_filter, text)
            self._release(text)
            if self.finish_reason is not None:
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
            num_predicted=self._num_new_predicted,
        )
        self._new_text, self._new_ids, self._new_entries = [], [], []
        self._num_new_predicted = 0
        return delta

    def _add_entry(self, logprobs: TokenLogprobs, *, has_text: bool) -> None:
        token_id, detokenizer = logprobs.token_id, self._detokenizer
        text = self._tokenizer.token_text(token_id)
        entry = logprob_entry(self._tokenizer, logprobs, text)
        if has_text:
            self._entries.append((detokenizer.start_of(token_id), entry))
        else:
            without_bytes = msgspec.structs.replace(entry, bytes=b"")
            self._entries.append((detokenizer.num_chars, without_bytes))

    def _shows_end(self, token_id: int) -> bool:
        return self._params.include_stop_str_in_output and not self._is_eos(token_id)

    def _is_eos(self, token_id: int) -> bool:
        return token_id in self._tokenizer.eos_token_ids and not self._params.ignore_eos

    def _before_stop(self, stop_filter: StopFilter, text: str, is_last: bool = False) -> str:
        """Return as much text as is safe to show. A stop string ends the choice."""
        may_stop = self._num_tokens >= self._params.min_tokens
        text = stop_filter.add(text, may_stop=may_stop, is_last=is_last)
        if stop_filter.stop is not None:
            self._release(text)
            self._entries.clear()
            self.finish_reason, self._stop_reason = FinishReason.STOP, stop_filter.stop
            return ""
        return text

    def _end(self, reason: FinishReason, stop_token_id: int | None) -> None:
        """End the choice as the engine says, unless the last bytes complete a stop string."""
        text = self._detokenizer.flush()
        if self._stop_filter is not None:
            text = self._before_stop(self._stop_filter, text, is_last=True)
        self._release(text)
        if self.finish_reason is not None:
            if reason in (FinishReason.ABORT, FinishReason.ERROR):
                self.finish_reason, self._stop_reason = reason, None
            return
        while self._entries:
            self._new_entries.append(self._entries.popleft()[1])
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
