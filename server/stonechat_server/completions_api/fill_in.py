"""Prompts to fill in the middle of a text, in the formats of models that are trained for it.

A format writes what is before the gap and what is after it, each behind a token of its own. The
model then writes what belongs in between. Models do not say which format they know, so the tokens
of the vocabulary decide. Sources: the model cards, and the papers on StarCoder, Code Llama,
DeepSeek-Coder and Qwen2.5-Coder.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FillInFormat:
    """The tokens before the text in front of the gap, before the text behind it, and at the end.

    `middle` is empty for models whose last part is the text in front of the gap.
    """

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False
    ends: tuple[str, ...] = ()
    """Tokens other than EOS that end what is filled in."""

    @property
    def tokens(self) -> tuple[str, ...]:
        return (self.prefix, self.suffix, *((self.middle,) if self.middle else ()))

    def parts(self, before: str, after: str) -> list[tuple[str, bool]]:
        """The prompt as parts. A flag marks the client's texts, which have no special tokens."""
        parts = [[(self.prefix, False), (before, True)], [(self.suffix, False), (after, True)]]
        if self.suffix_first:
            parts.reverse()
        return [*parts[0], *parts[1], *([(self.middle, False)] if self.middle else [])]


REPOSITORY_ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|file_separator|>")

FORMATS = (
    # Qwen2.5-Coder, CodeGemma, Granite 4
    FillInFormat("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ends=REPOSITORY_ENDS),
    # StarCoder, Granite Code
    FillInFormat(
        "<fim_prefix>", "<fim_suffix>", "<fim_middle>", ends=("<|endoftext|>", "<file_sep>")
    ),
    # SantaCoder
    FillInFormat("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<|endoftext|>",)),
    # DeepSeek-Coder
    FillInFormat("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>"),
    # Code Llama
    FillInFormat("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),
    # GLM and CodeGeeX
    FillInFormat("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", ends=("<|endoftext|>",)),
    # Seed-Coder
    FillInFormat("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),
    # Codestral
    FillInFormat("[PREFIX]", "[SUFFIX]", "", suffix_first=True),
)


def fill_in_format(added_tokens: Collection[str]) -> FillInFormat | None:
    """The format whose tokens are all among `added_tokens`; None if there is none."""
    return next((f for f in FORMATS if all(token in added_tokens for token in f.tokens)), None)
