"""Bounds the rows of logits that a step computes for log-probabilities of prompts.

Such a prompt needs the logits of all its tokens, and the logits of many tokens are large. Only
sequences whose prompt's log-probabilities are wanted come here. `known` are those of the prompt so
far.
"""

from collections import abc

from stonechat_models.engine.sequence import Scheduled, Sequence
from stonechat_models.types import TokenLogprobs

Known = abc.Sequence[TokenLogprobs]


class PromptRows:
    """Gives each step at most `max_rows` such rows, counted over all its sequences."""

    def __init__(self, max_rows: int, *, exact_chunks: bool) -> None:
        """Without `exact_chunks`, a prompt is computed in one piece: it needs all rows at once."""
        self.max_rows = max_rows
        self.num_left = max_rows
        """Rows that the present step may still have. The scheduler resets it."""
        self._exact_chunks = exact_chunks

    def must_wait(self, sequence: Sequence, known: Known) -> bool:
        """True if the step has too few rows left to admit the sequence."""
        return self.num_left == 0 or self.max_tokens(sequence, known) == 0

    def max_tokens(self, sequence: Sequence, known: Known) -> int:
        """Return how many tokens the sequence may compute in this step."""
        first = max(sequence.num_scheduled, len(known))
        num_rows = sequence.num_prompt_tokens - 1 - first
        if num_rows <= self.num_left:
            return len(sequence.token_ids)
        return first + self.num_left - sequence.num_scheduled if self._exact_chunks else 0

    def take(self, item: Scheduled, known: Known) -> None:
        """Give the item the rows of its prompt tokens, but the last, that are not known yet."""
        end = min(item.start + item.num_tokens, item.sequence.num_prompt_tokens - 1)
        item.num_prompt_rows = max(0, end - max(item.start, len(known)))
        self.num_left -= item.num_prompt_rows
