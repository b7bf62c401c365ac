"""A scripted engine and a byte-level tokenizer, so that a server runs without a model."""

import asyncio
import codecs
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stonechat_models import (
    CompletionDelta,
    EngineStats,
    FinishReason,
    GenerateRequest,
    LogprobEntry,
    ModelInfo,
    PromptTooLongError,
    RequestOutput,
    RequestTimings,
    StopRules,
    TopLogprob,
)
from stonechat_models.engine.prompts.lookup import TextFollower

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


def model_info(**changes: object) -> ModelInfo:
    values: dict[str, object] = {
        "name": "tiny-test",
        "architecture": "LlamaForCausalLM",
        "vocab_size": 256,
        "max_model_len": 4096,
        "device": "cpu",
        "dtype": "float32",
        "quantization": "none",
        "backend": "transformers",
        "attention_backend": "sdpa",
        "num_parameters": 1_000_000,
        "weight_bytes": 4_000_000,
        "weights_hash": "0123456789abcdef",
        "block_size": 16,
        "num_blocks": 1024,
        "kv_bytes_per_token": 1024,
        "max_batch_tokens": 512,
        "max_num_seqs": 32,
        "threads": 1,
        "file_format": "gguf",
    }
    return ModelInfo(**(values | changes))  # type: ignore[arg-type]


@dataclass
class ByteTokenizer:
    """Every byte of the UTF-8 text is a token."""

    chat_template: str | None = CHATML
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=lambda: {"eos_token": "<|im_end|>"})
    vocab_size: int = 256
    special_ids: frozenset[int] = frozenset()
    added_tokens: frozenset[str] = frozenset()
    added_token_ids: frozenset[int] = frozenset()
    tokenizer_class: str = "ByteTokenizer"

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")

    def text_pieces(self, token_ids: Iterable[int]) -> list[str]:
        """A character of several bytes is in the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(bytes([token_id])) for token_id in token_ids]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < self.vocab_size else b""

    def token_string(self, token_id: int) -> str:
        return f"<0x{token_id:02X}>" if token_id < self.vocab_size else ""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def encode_parts(
        self, parts: Sequence[tuple[str, bool]], other_tokens: frozenset[str] = frozenset()
    ) -> list[int]:
        """Plain parts stand in brackets, to be seen."""
        return self.encode("".join(f"[{text}]" if plain else text for text, plain in parts))

    def token_text(self, token_id: int) -> str:
        return bytes([token_id]).decode("latin-1")


class SpecialTokenizer(ByteTokenizer):
    """Byte tokens, and the special tokens of a format behind them."""

    def __init__(self, chat_template: str, tokens: Sequence[str]) -> None:
        size = 256 + len(tokens)
        super().__init__(chat_template, special_ids=frozenset(range(256, size)), vocab_size=size)
        self.tokens = tokens

    def token_text(self, token_id: int) -> str:
        return self.tokens[token_id - 256] if token_id >= 256 else super().token_text(token_id)


Script = Callable[[GenerateRequest], Iterable[RequestOutput | Exception | float]]
"""Returns the items for a request, in order: an output, an error to raise, or seconds to wait."""


@dataclass
class FakeEngine:
    """Plays `script`. Remembers the requests, and in `aborted` those closed before their end.

    A request with `max_tokens=0` gets `nothing` instead. One with `prompt_logprobs` gets
    `prompt_logprobs` in its first output.

    `ended` has the request and the index of each choice that the server ended.
    """

    script: Script = field(default_factory=lambda: text_script("Hello", " wörld", " 👋"))
    model: ModelInfo = field(default_factory=model_info)
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    media_processor: Any = None
    is_alive: bool = True
    failure: BaseException | None = None
    requests: list[GenerateRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)
    num_running: int = 0

    async def start(self) -> None:
        pass

    async def shutdown(self) -> None:
        self.is_alive = False

    def stats(self) -> EngineStats:
        return EngineStats(num_running=self.num_running)

    def end_choice(self, request_id: str, index: int) -> None:
        self.ended.append((request_id, index))

    async def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]:
        self.requests.append(request)
        params = request.params
        if len(request.prompt_token_ids) + (params.max_tokens != 0) > self.model.max_model_len:
            raise PromptTooLongError(len(request.prompt_token_ids), self.model.max_model_len)
        self.num_running += 1
        is_finished = False
        predicted = TextFollower.for_choices(request.prediction_token_ids, params.n)
        scores = None if params.prompt_logprobs is None else prompt_logprobs(request)
        try:
            for item in self.script(request) if params.max_tokens != 0 else [nothing(request)]:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, RequestOutput):
                    is_finished = item.finished
                    deltas = [_count_predicted(d, predicted[d.index]) for d in item.deltas]
                    yield msgspec.structs.replace(
                        item, deltas=tuple(deltas), prompt_logprobs=scores
                    )
                    scores = None
                else:
                    await asyncio.sleep(item)
        finally:
            self.num_running -= 1
            if not is_finished:
                self.aborted.append(request.request_id)

    @property
    def stop_rules(self) -> StopRules:
        """The stop rules of the last request, which must have some."""
        rules = self.requests[-1].params.stop
        assert rules is not None
        return rules

    @property
    def prompt(self) -> str:
        """The text of the latest prompt."""
        return bytes(self.requests[-1].prompt_token_ids).decode()


def _count_predicted(delta: CompletionDelta, follower: TextFollower) -> CompletionDelta:
    num_predicted = sum(follower.follow(token_id) for token_id in delta.token_ids)
    return msgspec.structs.replace(delta, num_predicted=num_predicted)


def output(
    request: GenerateRequest,
    *deltas: CompletionDelta,
    finished: bool = False,
    cached: int = 0,
    written: int = 0,
    error: str | None = None,
) -> RequestOutput:
    now = time.monotonic()
    return RequestOutput(
        request_id=request.request_id,
        deltas=deltas,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_cached_tokens=cached,
        num_cache_written_tokens=written,
        finished=finished,
        timings=RequestTimings(now, now, now, now if finished else None),
        error=error,
    )


def nothing(request: GenerateRequest) -> RequestOutput:
    """The only output of a request that generates nothing: all choices end with `length`."""
    deltas = [delta("", i, FinishReason.LENGTH, num_tokens=0) for i in range(request.params.n)]
    now = time.monotonic()
    return msgspec.structs.replace(
        output(request, *deltas, finished=True), timings=RequestTimings(now, now, None, now)
    )


def prompt_logprobs(request: GenerateRequest) -> tuple[LogprobEntry | None, ...]:
    """Entries of the prompt's bytes. The token at position i has the rank 1 + i mod 3, and the
    token of rank r has the log-probability -r / 2. The others at a position have the next ids."""
    ids, num_tops = list(request.prompt_token_ids), request.params.prompt_logprobs or 0
    tokenizer = ByteTokenizer()
    pieces = tokenizer.text_pieces(ids)
    entries: list[LogprobEntry | None] = [None]
    for i in range(1, len(ids)):
        rank = 1 + i % 3
        others = ((ids[i] + j) % 256 for j in range(1, num_tops + 1))
        tops = [ids[i] if r == rank else next(others) for r in range(1, num_tops + 1)]
        top = [
            TopLogprob(t, pieces[i] if t == ids[i] else tokenizer.token_text(t), bytes([t]), -r / 2)
            for r, t in enumerate(tops, 1)
        ]
        entries.append(
            LogprobEntry(ids[i], pieces[i], bytes([ids[i]]), -rank / 2, tuple(top), rank)
        )
    return tuple(entries)


def delta(
    text: str = "", index: int = 0, finish: FinishReason | None = None, **changes: object
) -> CompletionDelta:
    values: dict[str, object] = {
        "index": index,
        "text": text,
        "token_ids": tuple(text.encode()),
        "logprobs": None,
        "num_tokens": 1,
        "finish_reason": finish,
    }
    return CompletionDelta(**(values | changes))  # type: ignore[arg-type]


def endless(piece: str = "word ", pause: float = 0.02) -> Script:
    """The piece again and again, until the client goes."""

    def play(request: GenerateRequest) -> Iterator[RequestOutput | Exception | float]:
        deltas = [delta(piece, index, token_ids=()) for index in range(request.params.n)]
        while True:
            yield output(request, *deltas)
            yield pause

    return play


def held(is_over: Callable[[], bool]) -> Script:
    """A piece, and a last one once it `is_over`."""

    def play(request: GenerateRequest) -> Iterator[RequestOutput | Exception | float]:
        yield output(request, delta("first"))
        while not is_over():
            yield 0.005
        yield output(request, delta(" last", finish=FinishReason.STOP), finished=True)

    return play


def text_script(*pieces: str, pause: float = 0.0, cached: int = 0, written: int = 0) -> Script:
    """Each choice gets one piece per step, the last one with `stop`."""

    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        items: list[RequestOutput | Exception | float] = []
        for step, piece in enumerate(pieces):
            last = step == len(pieces) - 1
            finish = FinishReason.STOP if last else None
            deltas = [delta(piece, i, finish) for i in range(request.params.n)]
            items += [pause] if pause else []
            items.append(output(request, *deltas, finished=last, cached=cached, written=written))
        return items

    return play
