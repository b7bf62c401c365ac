"""Splits the tokens of a window at its times, into segments, and those of a segment into words.

A time token stands for a multiple of `FRAMES_PER_TIME`. A segment begins and ends with one, so that
two of them follow each other between segments.
"""

import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.transcript import SpeechWord

FRAMES_PER_SECOND = 100
FRAMES_PER_TIME = 2
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that put no spaces between words: each of their characters or tokens counts as one."""
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Ends the text of a token that ends within a character."""


class Part(NamedTuple):
    """The tokens `first:last` of a window are a segment. Times are counted from its start."""

    first: int
    last: int
    start: int
    end: int


class TimedToken(NamedTuple):
    """A token, and the seconds in which it is said."""

    token_id: int
    start: float
    end: float


def split_at_times(
    token_ids: Sequence[int], first_time: int, num_frames: int
) -> tuple[list[Part], int]:
    """Return the segments of a window of `num_frames`, and where the next window begins.

    `first_time`: the token of the time 0; those above it are later. What follows the last pair of
    times is not finished: the next window begins there and hears it whole. That a single time ends
    the tokens means that no speech follows it.
    """
    times = [token_id - first_time for token_id in token_ids]
    is_time = [time >= 0 for time in times]
    pairs = [i for i in range(1, len(times)) if is_time[i] and is_time[i - 1]]
    if not pairs:
        last = max((time for time in times if time > 0), default=num_frames // FRAMES_PER_TIME)
        return [Part(0, len(times), 0, last)], num_frames
    is_ended = is_time[-2:] == [False, True]
    bounds = [0, *pairs, *([len(times)] if is_ended else [])]
    parts = [Part(first, last, times[first], times[last - 1]) for first, last in pairwise(bounds)]
    next_start = num_frames if is_ended else times[pairs[-1] - 1] * FRAMES_PER_TIME
    return parts, next_start if 0 < next_start < num_frames else num_frames


def compression_ratio(text: str) -> float:
    """Return how many bytes of a text zlib makes one of."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def words_of(
    tokens: Sequence[TimedToken], tokenizer: Tokenizer, language: str
) -> tuple[SpeechWord, ...]:
    """Return the words of a text.

    A word begins with a space, so that punctuation belongs to the word before it.
    """
    words: list[SpeechWord] = []
    waiting: list[TimedToken] = []
    for token in tokens:
        waiting.append(token)
        text = tokenizer.decode([one.token_id for one in waiting])
        if text.endswith(INCOMPLETE) and token is not tokens[-1]:
            continue
        start = waiting[0].start
        if words and not text.startswith(" ") and language not in UNSPACED:
            text, start = words[-1].text + text, words.pop().start
        words.append(SpeechWord(text, start, token.end))
        waiting = []
    stripped = [SpeechWord(word.text.strip(), word.start, word.end) for word in words]
    return tuple([word for word in stripped if word.text])
