"""Turns grammars into token masks with llguidance: compile once, then one matcher per sequence.

The output is exactly what the grammar allows. Special tokens are never part of a text, whitespace
between JSON tokens is bounded, and the end token is allowed only where the grammar may end. A
schema or grammar that llguidance cannot enforce raises a `GrammarError` that names the reason.
Nothing is dropped in silence.

Some grammars take very long to compile, or much memory: `GrammarChecker` finds out first, in a
process with limits. Compile the others off the event loop. llguidance's own limits ("fuel") bound
the time of each mask.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.cost import is_cheap
from stonechat_models.grammar.reasoning_budget import MarkerTokens, ReasoningConstraint
from stonechat_models.grammar.source import limits, number_grammar, reason, to_llguidance
from stonechat_models.grammar.vocabulary import VocabularyLike, build_llguidance_tokenizer
from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.types import GrammarSpec, ReasoningSpec

CACHE_SIZE = 128
COSTLY_CACHE_SIZE = 8
"""Of the grammars that are not cheap. Each may hold as much memory as its check allows."""
MAX_USES = 4096
"""A grammar is compiled again after this many matchers: they share lexer states, which grow."""


class GrammarConstraint:
    """The position of one sequence in a grammar. Only one thread at a time may use it.

    Further matchers may limit the same text more (see `number_grammar`).
    """

    def __init__(self, matchers: list[LLMatcher]) -> None:
        self._matchers = matchers
        self.is_finished = False

    def fill_bitmask(self, row: npt.NDArray[np.int32]) -> bool:
        """See `TokenConstraint`. Raises `GrammarError` at a limit, or if no token may follow."""
        for i, matcher in enumerate(self._matchers):
            mask = np.zeros_like(row) if i else row
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if i:
                row &= mask
            if matcher.is_error() or (i and not row.any()):
                raise GrammarError(reason(matcher.get_error()))
        return True

    def accept(self, token_id: int) -> None:
        """Advance past a token. If the grammar forbids it, the next `fill_bitmask` raises."""
        if self.is_finished:
            return
        for matcher in self._matchers:
            matcher.consume_token(token_id)
            # A limit on numbers stops only behind a number, which may end anywhere.
            self.is_finished |= matcher.is_stopped() and not matcher.is_error()

    def allows(self, token_id: int) -> bool:
        """Return whether this token may come next."""
        return all(matcher.validate_tokens([token_id]) == 1 for matcher in self._matchers)

    def fork(self) -> "GrammarConstraint":
        """See `TokenConstraint`."""
        forked = GrammarConstraint([matcher.deep_copy() for matcher in self._matchers])
        forked.is_finished = self.is_finished
        return forked


@dataclass(slots=True)
class _CachedGrammar:
    """A compiled grammar, at its start: constraints are forked from it under the lock."""

    start: GrammarConstraint
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_uses: int = 0

    def new_constraint(self) -> GrammarConstraint:
        with self.lock:
            self.num_uses += 1
            return self.start.fork()


_Cache = OrderedDict[GrammarSpec, _CachedGrammar | GrammarError]


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
    """Compiles grammars and keeps those that were used last. Thread-safe."""

    def __init__(self, tokenizer: VocabularyLike, vocab_size: int) -> None:
        """`vocab_size` is the width of the logits."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ll_tokenizer: LLTokenizer | None = None
        self._cheap: _Cache = OrderedDict()
        self._costly: _Cache = OrderedDict()
        self._markers: dict[ReasoningSpec, MarkerTokens] = {}
        self._lock = threading.Lock()

    def compile(
        self, spec: GrammarSpec | None, reasoning: ReasoningSpec | None = None
    ) -> CompiledGrammar:
        """Compile at least one of the two. Raises `GrammarError` with a reason for the user."""
        if spec is None and reasoning is None:
            raise ValueError("neither a grammar nor a reasoning spec is given")
        grammar = self._cached(spec) if spec is not None else None
        markers = self._cached_markers(reasoning) if reasoning is not None else None
        return CompiledGrammar(grammar, markers)

    def _cached(self, spec: GrammarSpec) -> _CachedGrammar:
        cache, size = (
            (self._cheap, CACHE_SIZE) if is_cheap(spec) else (self._costly, COSTLY_CACHE_SIZE)
        )
        with self._lock:
            entry = cache.get(spec)
        if entry is None or (isinstance(entry, _CachedGrammar) and entry.num_uses >= MAX_USES):
            entry = self._compile(spec)  # without the lock: another thread may compile meanwhile
        with self._lock:
            cache[spec] = entry
            cache.move_to_end(spec)
            if len(cache) > size:
                cache.popitem(last=False)
        if isinstance(entry, GrammarError):
            raise GrammarError(str(entry))
        return entry

    def _cached_markers(self, reasoning: ReasoningSpec) -> MarkerTokens:
        with self._lock:
            if reasoning not in self._markers:
                if len(self._markers) >= CACHE_SIZE:
                    self._markers.clear()
                self._markers[reasoning] = MarkerTokens.build(
                    reasoning, self._tokenizer, self._vocab_size
                )
            return self._markers[reasoning]

    def _compile(self, spec: GrammarSpec) -> _CachedGrammar | GrammarError:
        try:
            ll_tokenizer = self._vocabulary()
            grammar = to_llguidance(spec)
        except GrammarError as error:
            return error
        matcher = LLMatcher(ll_tokenizer, grammar, limits=limits(), log_level=0)
        if not matcher.is_error():
            # The first mask fails if the grammar cannot begin, and it warms the lexer.
            matcher.compute_bitmask()
        if matcher.is_error():
            return GrammarError(reason(matcher.get_error()))
        matchers = [matcher]
        if (numbers := number_grammar(spec)) is not None:
            matchers.append(LLMatcher(ll_tokenizer, numbers, limits=limits(), log_level=0))
        return _CachedGrammar(GrammarConstraint(matchers))

    def _vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._ll_tokenizer is None:
                self._ll_tokenizer = build_llguidance_tokenizer(self._tokenizer, self._vocab_size)
            return self._ll_tokenizer
