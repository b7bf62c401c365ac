"""Regular expressions from model files, matched in linear time: they may be made to never end.

The engine is Rust's, which pydantic-core has. It knows no look-around; here a pattern may begin
with one negative look-ahead, such as `(?!.*lm_head)`.
"""

import re
from collections.abc import Callable
from functools import lru_cache

MAX_PATTERN = 1024
"""The longest pattern, in characters."""
_LOOK_AHEAD = re.compile(r"\^?\(\?!")
_INNERMOST = re.compile(r"\\.|\[[^]]*\]|\([^()]*\)")


class PatternError(ValueError):
    """A pattern has a form that is not read."""


@lru_cache(maxsize=512)  # one may take several MB
def compiled(pattern: str) -> Callable[[str], bool]:
    """Return whether a text begins with a match of the pattern, as `re.match` says.

    Raises `PatternError` for a pattern that is not valid, too long, or of a form that is not read.
    """
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"a pattern has over {MAX_PATTERN} characters")
    look_ahead = _LOOK_AHEAD.match(pattern)
    if look_ahead is None:
        return _linear(pattern)
    rest = pattern[look_ahead.end() :]
    for end in re.finditer(r"\)", rest):  # the first that leaves a whole pattern before it
        try:
            is_barred = _linear(rest[: end.start()])
        except PatternError:
            continue
        if _has_alternatives(rest[end.end() :]):
            break
        goes_on = _linear(rest[end.end() :])
        return lambda text: goes_on(text) and not is_barred(text)
    raise PatternError(f"the pattern {pattern[:60]!r} is not read")


def _linear(pattern: str) -> Callable[[str], bool]:
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        re.compile(pattern)  # only what means the same to Python
        return SchemaValidator(core_schema.str_schema(pattern=f"^(?:{pattern})")).isinstance_python
    except (SchemaError, re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"the pattern {pattern[:60]!r} is not read") from error


def _has_alternatives(pattern: str) -> bool:
    """Whether there are alternatives outside of groups."""
    while (bare := _INNERMOST.sub("", pattern)) != pattern:
        pattern = bare
    return "|" in pattern
