"""Grammars as token masks, by llguidance: compiled once, then one light matcher a sequence.

What may be written is exactly what the grammar allows: special tokens are never part of a text,
whitespace between JSON tokens is bounded, and the end token is allowed only where the grammar may
end. What llguidance cannot enforce is a `GrammarError` that names it, never silently dropped.

Compiling is bounded by the size of the source and by llguidance's own limits ("fuel"), so it takes
at most about a second; call it off the event loop. Masks are bounded by fuel too.
"""

import json
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.json_schema import prepare_schema, prepare_value
from stonechat_models.grammar.reasoning_budget import MarkerTokens, ReasoningConstraint
from stonechat_models.grammar.vocabulary import VocabularyLike, build_llguidance_tokenizer
from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.types import GrammarSpec, ReasoningSpec

MAX_SOURCE_CHARS = 256 * 1024
CACHE_SIZE = 256
MAX_USES = 4096
"""Matchers of a grammar share its lexer's states, which grow with use: then it is compiled anew."""

_LARK_TOKEN = re.compile(
    r"""//[^\n]*|\#[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|(?P<json>%json\b)""", re.VERBOSE
)
_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: (\[.*\])(?: |\n|.)*")


def _limits() -> LLParserLimits:
    return LLParserLimits(
        max_items_in_row=10_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def check_grammar(spec: GrammarSpec) -> None:
    """Raises `GrammarError` for what cannot be compiled; costs about as much as compiling."""
    grammar = _to_llguidance(spec)
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=_limits())
    if is_error:
        raise GrammarError(_reason(messages[0]))


class GrammarConstraint:
    """One sequence's place in a grammar. Owned by one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._is_finished = False

    def fill_bitmask(self, row: torch.Tensor) -> bool:
        """See `TokenConstraint`. Raises `GrammarError` at a limit, or where nothing may follow."""
        self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher.get_error()))
        return True

    def accept(self, token_id: int) -> None:
        """A token that the grammar forbids is an error, raised by the next `fill_bitmask`."""
        if not self._is_finished:
            self._matcher.consume_token(token_id)
            self._is_finished = self._matcher.is_stopped() and not self._matcher.is_error()

    def allows(self, token_id: int) -> bool:
        """Whether this token may come next."""
        return bool(self._matcher.validate_tokens([token_id]) == 1)

    def fork(self) -> "GrammarConstraint":
        """See `TokenConstraint`."""
        forked = GrammarConstraint(self._matcher.deep_copy())
        forked._is_finished = self._is_finished
        return forked

    @property
    def is_finished(self) -> bool:
        return self._is_finished


@dataclass(slots=True)
class _Compiled:
    """A grammar at its start; matchers are copied from it under the lock."""

    matcher: LLMatcher
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_uses: int = 0

    def new_constraint(self) -> GrammarConstraint:
        with self.lock:
            self.num_uses += 1
            return GrammarConstraint(self.matcher.deep_copy())


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """What a request's choices must follow: a grammar, the bounds of its reasoning, or both."""

    _grammar: _Compiled | None
    _markers: MarkerTokens | None

    def new_constraint(self) -> TokenConstraint:
        """A constraint for one choice, at its start. May be called from any thread."""
        constraint = self._grammar.new_constraint() if self._grammar else None
        if self._markers is not None:
            return ReasoningConstraint(self._markers, constraint)
        assert constraint is not None
        return constraint


class GrammarCompiler:
    """Compiles and keeps the last `CACHE_SIZE` grammars. Thread-safe; one compiles at a time."""

    def __init__(self, tokenizer: VocabularyLike, vocab_size: int) -> None:
        """`vocab_size` is the width of the logits."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ll_tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[GrammarSpec, _Compiled | GrammarError] = OrderedDict()
        self._markers: dict[ReasoningSpec, MarkerTokens] = {}
        self._lock = threading.Lock()

    def compile(
        self, spec: GrammarSpec | None, reasoning: ReasoningSpec | None = None
    ) -> CompiledGrammar:
        """At least one of the two must be given. Raises `GrammarError` with a reason for people."""
        if spec is None and reasoning is None:
            raise ValueError("there is nothing to compile")
        with self._lock:
            grammar = self._cached(spec) if spec is not None else None
            markers = self._cached_markers(reasoning) if reasoning is not None else None
        return CompiledGrammar(grammar, markers)

    def _cached(self, spec: GrammarSpec) -> _Compiled:
        found = self._cache.get(spec)
        if found is None or (isinstance(found, _Compiled) and found.num_uses >= MAX_USES):
            found = self._compile(spec)
            self._cache[spec] = found
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(spec)
        if isinstance(found, GrammarError):
            raise GrammarError(str(found))
        return found

    def _cached_markers(self, reasoning: ReasoningSpec) -> MarkerTokens:
        if reasoning not in self._markers:
            if len(self._markers) >= CACHE_SIZE:
                self._markers.clear()
            self._markers[reasoning] = MarkerTokens.build(
                reasoning, self._tokenizer, self._vocab_size
            )
        return self._markers[reasoning]

    def _compile(self, spec: GrammarSpec) -> _Compiled | GrammarError:
        if self._ll_tokenizer is None:
            self._ll_tokenizer = build_llguidance_tokenizer(self._tokenizer, self._vocab_size)
        try:
            grammar = _to_llguidance(spec)
        except GrammarError as error:
            return error
        matcher = LLMatcher(self._ll_tokenizer, grammar, limits=_limits(), log_level=0)
        if not matcher.is_error():
            # A first mask finds grammars that cannot begin, and warms the lexer.
            matcher.compute_bitmask()
        if matcher.is_error():
            return GrammarError(_reason(matcher.get_error()))
        return _Compiled(matcher)


def _to_llguidance(spec: GrammarSpec) -> str:
    if len(spec.source) > MAX_SOURCE_CHARS:
        raise GrammarError(f"a grammar may have at most {MAX_SOURCE_CHARS} characters")
    try:
        return _grammar_text(spec)
    except UnicodeEncodeError as error:
        raise GrammarError("a grammar must not have lone surrogates") from error


def _grammar_text(spec: GrammarSpec) -> str:
    match spec.kind:
        case "json_schema":
            return str(LLMatcher.grammar_from_json_schema(prepare_schema(spec.source)))
        case "regex":
            return str(LLMatcher.grammar_from_regex(_unanchored(spec.source)))
        case "choice":
            return str(LLMatcher.grammar_from_lark(_choice_grammar(spec.source)))
        case "lark":
            return str(LLMatcher.grammar_from_lark(_prepare_lark(spec.source)))
        case "lark_bundle":
            return _bundle(spec.source)


def _unanchored(pattern: str) -> str:
    """The whole output must match anyway, and llguidance knows no anchors."""
    has_end = pattern.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", pattern)
    return pattern.removeprefix("^")[: -1 if has_end else None]


def _choice_grammar(source: str) -> str:
    choices = json.loads(source)
    if not isinstance(choices, list) or not choices or not all(_is_text(c) for c in choices):
        raise GrammarError("choices must be a list of one or more strings, none of them empty")
    return "start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in choices)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _bundle(source: str) -> str:
    grammars = json.loads(source)
    return json.dumps(
        {"grammars": [{"name": n, "lark_grammar": _prepare_lark(g)} for n, g in grammars.items()]}
    )


def _prepare_lark(source: str) -> str:
    """The grammar with every inline `%json` schema made ready (see `json_schema`)."""
    parts: list[str] = []
    position = 0
    decoder = json.JSONDecoder()
    for match in _LARK_TOKEN.finditer(source):
        if match["json"] is None or match.start() < position:
            continue
        start = match.end() + len(source[match.end() :]) - len(source[match.end() :].lstrip())
        try:
            schema, end = decoder.raw_decode(source, start)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"%json must be followed by a JSON schema: {error}") from error
        parts += [source[position : match.end()], " ", json.dumps(prepare_value(schema))]
        position = end
    return "".join([*parts, source[position:]])


def _reason(error: str) -> str:
    first_line = re.split(r"\n<(?:state|non-verbose)", error.strip())[0].strip()[:500]
    if not first_line or first_line.startswith("NoExtension"):
        return "no output can satisfy this grammar"
    if unknown := _UNKNOWN_KEYS.fullmatch(first_line):
        names = ", ".join(json.loads(unknown[1]))
        return f"the JSON schema uses keywords that are not supported: {names}"
    return first_line
