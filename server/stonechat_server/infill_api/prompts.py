"""Turns a text with a gap, and pieces of other files, into token ids."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stonechat_server.completions_api.prompts import Prompt, PromptEncoder, known_fill_in
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.infill_api.request import ContextFile

REPOSITORIES = (("<|repo_name|>", "<|file_sep|>"), ("<repo_name>", "<file_sep>"))
"""The tokens before the name of a repository and before that of a file: of Qwen2.5-Coder, and of
StarCoder 2."""
REPOSITORY, FILE = "myproject", "filename"
"""The names that llama.cpp's server writes for the repository and the file with the gap."""


class InfillEncoder(PromptEncoder):
    """Encodes a text with a gap behind as many of the last files as fit into the context."""

    def __init__(
        self, request: CompletionRequest, engine: EngineLike, files: Sequence[ContextFile]
    ) -> None:
        """Raises `APIError` 400 if the tokenizer has no tokens for a gap."""
        super().__init__(request, engine, as_text=True)
        self._fill_in = known_fill_in(self._tokenizer, "input_suffix")
        self._files = files
        added = self._tokenizer.added_tokens
        self._marks = next((pair for pair in REPOSITORIES if {*pair} <= {*added}), None)
        limit, length = request.token_limit, engine.model.max_model_len
        self._room = length - (length // 8 if limit is None else max(1, limit))
        self.is_cut = False
        """Whether files are left out, because they did not fit."""

    def encode(self, prompt: str | list[int], path: str) -> Prompt:
        whole = super().encode(prompt, path)
        ids, start = whole.token_ids, whole.num_hidden
        context = self._context(self._room - len(ids)) if self._files else []
        return replace(whole, token_ids=[*ids[:start], *context, *ids[start:]])

    def _context(self, room: int) -> list[int]:
        head, tail = self._around()
        room -= len(head) + len(tail)
        kept: list[list[int]] = []
        for ids in self._last_files():
            room -= len(ids)
            if room < 0:
                break
            kept.append(ids)
        self.is_cut = len(kept) < len(self._files)
        return [*head, *(i for ids in reversed(kept) for i in ids), *tail] if kept else []

    def _around(self) -> tuple[list[int], list[int]]:
        """What stands before and behind the files."""
        if self._marks is None:
            return [], []
        repository, file = self._marks
        return (
            self._ids([(repository, False), (f"{REPOSITORY}\n", True)]),
            self._ids([(file, False), (f"{FILE}\n", True)]),
        )

    def _last_files(self) -> Iterator[list[int]]:
        for file in reversed(self._files):
            text = file.text if file.text.endswith("\n") else f"{file.text}\n"
            if self._marks is None:
                yield self._ids([(text, True)])
            else:
                name = file.filename or FILE
                yield self._ids([(self._marks[1], False), (f"{name}\n{text}", True)])

    def _ids(self, parts: list[tuple[str, bool]]) -> list[int]:
        return self._tokenizer.encode_parts(parts, frozenset(self._marks or ()))
