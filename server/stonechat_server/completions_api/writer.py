"""Writes an answer as the events of a streamed text completion."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET

from stonechat_models import LogprobEntry
from stonechat_server.completions_api.answer import Completion, CompletionChoice, CompletionLogprobs
from stonechat_server.completions_api.offsets import TextOffsets, as_shown
from stonechat_server.completions_api.prompts import Prompt
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.parsers.deltas import ContentDelta
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import CompletionHead, CompletionsWriter
from stonechat_server.streaming.chunk_parts import prompt_logprobs_body, token_id_name


class CompletionWriter(CompletionsWriter):
    """Turns pieces into chunks.

    If the request asks for anything of the prompt, the first chunk of each choice has it.
    """

    chunk_type = Completion

    def __init__(
        self,
        head: CompletionHead,
        reader: AnswerReader,
        request: CompletionRequest,
        prompts: Sequence[Prompt],
    ) -> None:
        super().__init__(head, reader, request)
        self._request = request
        self._prompts = prompts
        self._offsets: dict[int, TextOffsets] = {}
        """One for each choice that has begun."""
        self._beginnings: dict[int, CompletionChoice] = {}
        """What choices begin with, by the number of the prompt. Its choices share it."""
        self._has_text: set[int] = set()
        has_logprobs = request.prompt_logprobs is not None
        self._begins = bool(request.echo or has_logprobs or request.return_token_ids)

    def write(self, piece: Piece) -> list[Completion]:
        chunks = []
        if piece.index not in self._offsets:
            self._offsets[piece.index] = TextOffsets()
            if self._begins:
                first = self._begin_choice(piece.index)
                chunks.append(self._chunk([first], first.text))
        text = _text(piece)
        choice = CompletionChoice(
            text=text,
            index=piece.index,
            logprobs=None if piece.logprobs is None else self._logprobs(piece, text),
            finish_reason=_finish_reason(piece),
            token_ids=UNSET if piece.token_ids is None else piece.token_ids,
        )
        if text:
            self._has_text.add(piece.index)
        return [*chunks, self._chunk([choice], text)]

    def _begin_choice(self, index: int) -> CompletionChoice:
        number = index * len(self._prompts) // len(self.reader.choices)
        if number not in self._beginnings:
            self._beginnings[number] = self._beginning(number)
        choice = msgspec.structs.replace(self._beginnings[number], index=index)
        self._offsets[index] = TextOffsets(len(choice.text))
        return choice

    def _beginning(self, number: int) -> CompletionChoice:
        """What the answer has of a prompt."""
        request = self._request
        prompt, entries = self._prompts[number], self.reader.prompt_logprobs.pop(number, None)
        choice = CompletionChoice(text="", index=0)
        if request.echo:
            choice.text = prompt.text
            if request.num_logprobs is not None and entries is not None:
                choice.logprobs = self._prompt_logprobs(prompt, entries, request.num_logprobs)
        if request.prompt_logprobs is not None and entries is not None:
            choice.prompt_logprobs = prompt_logprobs_body(entries, request.prompt_logprobs)
        if request.return_token_ids:
            choice.prompt_token_ids = prompt.token_ids
            choice.token_ids = []
        return choice

    def _prompt_logprobs(
        self, prompt: Prompt, entries: Sequence[LogprobEntry | None], num_top: int
    ) -> CompletionLogprobs:
        """The log-probabilities of a prompt: an entry for each token, even for a hidden one."""
        offsets, body = TextOffsets(), CompletionLogprobs()
        for token_id, data, shown, entry in zip(
            prompt.token_ids, prompt.token_bytes, prompt.shown_bytes(), entries, strict=True
        ):
            name = self._name(token_id, data)
            body.text_offset.append(min(offsets.add(shown), len(prompt.text)))
            body.tokens.append(name)
            body.token_logprobs.append(None if entry is None else entry.logprob)
            body.top_logprobs.append(None if entry is None else self._top(entry, name, num_top))
        return body

    def _logprobs(self, piece: Piece, text: str) -> CompletionLogprobs:
        offsets, body, entries = self._offsets[piece.index], CompletionLogprobs(), piece.logprobs
        shown = [entry.bytes for entry in entries or ()]
        if piece.index not in self._has_text:
            shown = as_shown(shown, text)
        for entry, data in zip(entries or (), shown, strict=True):
            name = self._name(entry.token_id, entry.bytes or entry.token.encode())
            body.text_offset.append(offsets.add(data))
            body.tokens.append(name)
            body.token_logprobs.append(entry.logprob)
            body.top_logprobs.append(self._top(entry, name, self._request.num_logprobs or 0))
        return body

    def _top(self, entry: LogprobEntry, name: str, num_top: int) -> dict[str, float]:
        """The likely tokens, best first, and the chosen one, which has this name."""
        best: dict[str, float] = {}
        for token in entry.top[:num_top]:
            best.setdefault(self._name(token.token_id, token.bytes), token.logprob)
        best.setdefault(name, entry.logprob)
        return best

    def _name(self, token_id: int, data: bytes) -> str:
        """The text of a token. A part of a character reads `bytes:` and its escaped bytes."""
        if self._tokens_as_ids:
            return token_id_name(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _text(piece: Piece) -> str:
    if piece.delta is None:
        return ""
    assert isinstance(piece.delta, ContentDelta), "a text completion has no parser"
    return piece.delta.text


def _finish_reason(piece: Piece) -> Literal["stop", "length"] | None:
    if piece.finish_reason is None:
        return None
    return "length" if piece.finish_reason == "length" else "stop"
