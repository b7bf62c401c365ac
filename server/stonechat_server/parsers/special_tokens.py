"""Removes special tokens from text in which the parser needs others."""

import re
from collections.abc import Collection

from stonechat_server.parsers.deltas import DeltaParser, ParsedDelta, WrappingParser


class SpecialTokenFilter(WrappingParser):
    """A `DeltaParser` that removes the tokens `dropped` before `inner` parses the text.

    It is needed if markers of calls or reasoning are special tokens: the engine then leaves every
    special token in the text. A special token always arrives whole.
    """

    def __init__(self, dropped: Collection[str], inner: DeltaParser) -> None:
        self._pattern = re.compile("|".join(map(re.escape, sorted(dropped))) or r"(?!)")
        super().__init__(inner)

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        return self.inner.feed(self._pattern.sub("", text), finished)
