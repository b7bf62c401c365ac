"""Turns grammars into token masks with llguidance: compile once, then one matcher per sequence.

The output is exactly what the grammar allows. Special tokens are never part of a text, whitespace
between JSON tokens is bounded, and the end token is allowed only where the grammar may end. A
schema or grammar that llguidance cannot enforce raises a `GrammarError` that names the reason.
Nothing is dropped in silence.

The size of the source and llguidance's own limits ("fuel") bound the compile time to about a
second. Call it off the event loop. Fuel bounds the time of each mask too.
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
"""A grammar is compiled again after this many matchers: they share lexer states, which grow."""

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
    """Raise `GrammarError` if `spec` cannot be compiled. Costs about as much as compiling it."""
    grammar = _to_llguidance(spec)
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=_limits())
    if is_error:
        raise GrammarError(_reason(messages[0]))


class GrammarConstraint:
    """The position of one sequence in a grammar. Only one thread at a time may use it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._is_finished = False

    def fill_bitmask(self, row: torch.Tensor) -> bool:
        """See `TokenConstraint`. Raises `GrammarError` at a limit, or if no token may follow."""
        self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher.get_error()))
        return True

    def accept(self, token_id: int) -> None:
        """Advance past a token. If the grammar forbids it, the next `fill_bitmask` raises."""
        if not self._is_finished:
            self._matcher.consume_token(token_id)
            self._is_finished = self._matcher.is_stopped() and not self._matcher.is_error()

    def allows(self, token_id: int) -> bool:
        """Return whether this token may come next."""
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
class _CachedGrammar:
    """A compiled grammar. `matcher` stands at the start and is copied under the lock."""

    matcher: LLMatcher
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_uses: int = 0

    def new_constraint(self) -> GrammarConstraint:
        with self.lock:
            self.num_uses += 1
            return GrammarConstraint(self.matcher.deep_copy())


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """What a request's choices must follow: a grammar, limits on the reasoning, or both."""

    _grammar: _CachedGrammar | None
    _markers: MarkerTokens | None

    def new_constraint(self) -> TokenConstraint:
        """Return a new constraint for one choice. May be called from any thread."""
        constraint = self._grammar.new_constraint() if self._grammar else None
        if self._markers is not None:
            return ReasoningConstraint(self._markers, constraint)
        assert constraint is not None
        return constraint


class GrammarCompiler:
    """Compiles grammars and keeps the `CACHE_SIZE` that were used last.

    Thread-safe: one thread compiles at a time.
    """

    def __init__(self, tokenizer: VocabularyLike, vocab_size: int) -> None:
        """`vocab_size` is the width of the logits."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ll_tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[GrammarSpec, _CachedGrammar | GrammarError] = OrderedDict()
        self._markers: dict[ReasoningSpec, MarkerTokens] = {}
        self._lock = threading.Lock()

    def compile(
        self, spec: GrammarSpec | None, reasoning: ReasoningSpec | None = None
    ) -> CompiledGrammar:
        """Compile at least one of the two. Raises `GrammarError` with a reason for the user."""
        if spec is None and reasoning is None:
            raise ValueError("neither a grammar nor a reasoning spec is given")
        with self._lock:
            grammar = self._cached(spec) if spec is not None else None
            markers = self._cached_markers(reasoning) if reasoning is not None else None
        return CompiledGrammar(grammar, markers)

    def _cached(self, spec: GrammarSpec) -> _CachedGrammar:
        entry = self._cache.get(spec)
        if entry is None or (isinstance(entry, _CachedGrammar) and entry.num_uses >= MAX_USES):
            entry = self._compile(spec)
            self._cache[spec] = entry
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(spec)
        if isinstance(entry, GrammarError):
            raise GrammarError(str(entry))
        return entry

    def _cached_markers(self, reasoning: ReasoningSpec) -> MarkerTokens:
        if reasoning not in self._markers:
            if len(self._markers) >= CACHE_SIZE:
                self._markers.clear()
            self._markers[reasoning] = MarkerTokens.build(
                reasoning, self._tokenizer, self._vocab_size
            )
        return self._markers[reasoning]

    def _compile(self, spec: GrammarSpec) -> _CachedGrammar | GrammarError:
        if self._ll_tokenizer is None:
            self._ll_tokenizer = build_llguidance_tokenizer(self._tokenizer, self._vocab_size)
        try:
            grammar = _to_llguidance(spec)
        except GrammarError as error:
            return error
        matcher = LLMatcher(self._ll_tokenizer, grammar, limits=_limits(), log_level=0)
        if not matcher.is_error():
            # The first mask fails if the grammar cannot begin, and it warms the lexer.
            matcher.compute_bitmask()
        if matcher.is_error():
            return GrammarError(_reason(matcher.get_error()))
        return _CachedGrammar(matcher)


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
    """Remove the outer anchors: the whole output must match anyway, and llguidance has none."""
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
    """Return the grammar with every inline `%json` schema prepared (see `json_schema`)."""
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
    if match := _UNKNOWN_KEYS.fullmatch(first_line):
        names = ", ".join(json.loads(match[1]))
        return f"the JSON schema uses keywords that are not supported: {names}"
    return first_line
