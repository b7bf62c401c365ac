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


SUFFIX_SHARE = 0.25
"""Of what fits into the context, how much is kept for the text behind the gap."""


class InfillEncoder(PromptEncoder):
    """Encodes a text with a gap behind as many of the last files as fit into the context.

    Of a text that does not fit, what is far from the gap is left out.
    """

    def __init__(
        self, request: CompletionRequest, engine: EngineLike, files: Sequence[ContextFile]
    ) -> None:
        """Raises `APIError` 400 if the tokenizer has no tokens for a gap."""
        super().__init__(request, engine, as_text=True)
        self._gap = self._fill_in = known_fill_in(self._tokenizer, "input_suffix")
        self._files = files
        added = self._tokenizer.added_tokens
        self._marks = next((pair for pair in REPOSITORIES if {*pair} <= {*added}), None)
        limit, length = request.token_limit, engine.model.max_model_len
        if limit is None or limit >= length:
            limit = length // 8
        self._room = length - max(1, limit)
        self.is_cut = False
        """Whether something is left out, because it did not fit."""

    def encode(self, prompt: str | list[int], path: str) -> Prompt:
        whole = super().encode(prompt, path)
        if len(whole.token_ids) > self._room and isinstance(prompt, str):
            whole = self._near_gap(whole, prompt)
        ids, start = whole.token_ids, whole.num_hidden
        context = self._context(self._room - len(ids)) if self._files else []
        return replace(whole, token_ids=[*ids[:start], *context, *ids[start:]])

    def _near_gap(self, whole: Prompt, before: str) -> Prompt:
        """The prompt without the beginning of the text before the gap, and the end of that after.

        It stays whole if nothing of the texts would fit.
        """
        gap, tokenizer = self._gap, self._tokenizer
        texts = [
            tokenizer.encode_parts([(text, is_text)], frozenset(gap.tokens))
            for text, is_text in gap.parts(before, self._suffix)
        ]
        first, last = (3, 1) if gap.suffix_first else (1, 3)
        room = self._room - whole.num_hidden
        room -= sum(len(ids) for i, ids in enumerate(texts) if i not in (first, last))
        if room <= 0:
            return whole
        num_after = max(int(room * SUFFIX_SHARE), room - len(texts[first]))
        texts[last] = texts[last][:num_after]
        texts[first] = texts[first][-(room - len(texts[last])) :]
        self.is_cut = True
        beginning = whole.token_ids[: whole.num_hidden]
        return replace(whole, token_ids=[*beginning, *(i for ids in texts for i in ids)])

    def _context(self, room: int) -> list[int]:
        head, tail = self._around()
        room -= len(head) + len(tail)
        kept: list[list[int]] = []
        for ids in self._last_files():
            room -= len(ids)
            if room < 0:
                break
            kept.append(ids)
        self.is_cut |= len(kept) < len(self._files)
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
