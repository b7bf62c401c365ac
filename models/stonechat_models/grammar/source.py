"""Turns a `GrammarSpec` into the text that llguidance compiles, and its errors into reasons.

Bounds on the source are checked here: they are the first of the limits on what a grammar may cost.
The module imports no tensors, so that the process that checks grammars stays small.
"""

import json
import re

from llguidance import LLMatcher, LLParserLimits

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.inline_schemas import bundle, number_bundle
from stonechat_models.grammar.schemas.json_schema import COMPILE_OPTIONS, prepare_schema
from stonechat_models.grammar.schemas.limits import check_expression
from stonechat_models.grammar.schemas.numbers import bounded_json, may_have_numbers
from stonechat_models.types import GrammarSpec

MAX_SOURCE_CHARS = 256 * 1024

_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: (\[.*\])(?: |\n|.)*")
_LIMIT_REACHED = re.compile(
    r"fuel exhausted|lexer precomputation failed|too many (?:states|expressions)|initial lexer"
    r"|grammar size|Too many items",
    re.IGNORECASE,
)


def limits() -> LLParserLimits:
    """llguidance's own limits. They bound a mask to tens of milliseconds, and what it stores."""
    return LLParserLimits(
        max_items_in_row=10_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=16_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def to_llguidance(spec: GrammarSpec) -> str:
    """Return the text to compile. Raises `GrammarError` with a reason for the user."""
    if len(spec.source) > MAX_SOURCE_CHARS:
        raise GrammarError(f"a grammar may have at most {MAX_SOURCE_CHARS:,} characters")
    try:
        return _grammar_text(spec)
    except UnicodeEncodeError as error:
        raise GrammarError("a grammar must not have lone surrogates") from error


def number_grammar(spec: GrammarSpec) -> str | None:
    """Return a second grammar that each text must follow too, so that its numbers end.

    None: nothing in the grammar of `spec` is a number without an end.
    """
    match spec.kind:
        case "json_schema" if may_have_numbers(json.loads(spec.source)):
            return str(LLMatcher.grammar_from_lark(bounded_json(COMPILE_OPTIONS)))
        case "lark":
            return number_bundle({"main": spec.source})
        case "lark_bundle":
            return number_bundle(json.loads(spec.source))
    return None


def check_grammar(spec: GrammarSpec) -> None:
    """Raise `GrammarError` if `spec` cannot be compiled.

    Costs about as much as compiling it, which can be much: `GrammarChecker` sets limits.
    """
    grammar = to_llguidance(spec)
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=limits())
    if is_error:
        raise GrammarError(reason(messages[0]))


def is_limit(error: str) -> bool:
    """Whether llguidance has given up at one of its limits."""
    return _LIMIT_REACHED.search(error) is not None


def reason(error: str) -> str:
    """Return what an error of llguidance means, for the user."""
    first_line = re.split(r"\n<(?:state|non-verbose)", error.strip())[0].strip()[:500]
    if not first_line or first_line.startswith("NoExtension"):
        return "no output can satisfy this grammar"
    if match := _UNKNOWN_KEYS.fullmatch(first_line):
        names = ", ".join(json.loads(match[1]))
        return f"the JSON schema uses keywords that are not supported: {names}"
    if is_limit(first_line):
        detail = re.split("; (?:try|either) ", first_line)[0]
        return f"it is too complex ({detail})"
    return first_line


def _grammar_text(spec: GrammarSpec) -> str:
    match spec.kind:
        case "json_schema":
            return str(LLMatcher.grammar_from_json_schema(prepare_schema(spec.source)))
        case "regex":
            check_expression(len(spec.source), "a regular expression")
            return str(LLMatcher.grammar_from_regex(_unanchored(spec.source)))
        case "choice":
            return str(LLMatcher.grammar_from_lark(_choice_grammar(spec.source)))
        case "lark":
            return bundle({"main": spec.source})
        case "lark_bundle":
            return bundle(json.loads(spec.source))


def _unanchored(pattern: str) -> str:
    """Remove the outer anchors: the whole output must match anyway, and llguidance has none."""
    has_end = pattern.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", pattern)
    return pattern.removeprefix("^")[: -1 if has_end else None]


def _choice_grammar(source: str) -> str:
    choices = json.loads(source)
    if not isinstance(choices, list) or not choices or not all(_is_text(c) for c in choices):
        raise GrammarError("choices must be a list of one or more strings, none of them empty")
    for text in choices:
        check_expression(len(text), "a choice")
    return "start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in choices)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""
