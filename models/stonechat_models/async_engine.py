"""The engine for asyncio: one thread steps it, messages go in and out, nothing else is shared."""

import asyncio
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_models.config import EngineConfig
from stonechat_models.engine import Engine
from stonechat_models.errors import EngineDeadError, InvalidParamsError, PromptTooLongError
from stonechat_models.output import OutputProcessor
from stonechat_models.sampling_state import TokenConstraint
from stonechat_models.tokenizer import Tokenizer
from stonechat_models.types import (
    EngineStats,
    GenerateRequest,
    ModelInfo,
    RequestOutput,
    TokenOutput,
)

if TYPE_CHECKING:
    from stonechat_models.grammar import CompiledGrammar, GrammarCompiler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Add:
    """Start a request. `grammar` is compiled already; each choice gets a matcher of its own."""

    request: GenerateRequest
    grammar: "CompiledGrammar | None"


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request, or one choice of it."""

    request_id: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread after the current step."""


Message = Add | Abort | Stop


class EngineThread:
    """Owns the engine: no other thread calls it once started."""

    def __init__(self, engine: Engine, deliver: Callable[[list[TokenOutput]], None]) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        self._deliver = deliver
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="stonechat-engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def start(self) -> None:
        self._thread.start()

    def send(self, message: Message) -> None:
        self._inbox.put(message)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _main(self) -> None:
        try:
            while self._handle_messages():
                self._deliver(self.engine.step())
                if self.engine.is_broken:
                    raise EngineDeadError("every request failed in several steps in a row")
        except BaseException as error:
            logger.critical("the engine has stopped", exc_info=error)
            self.failure = error
        self._deliver([])

    def _handle_messages(self) -> bool:
        """Take what has come, waiting only when there is nothing to do; False at the end."""
        while True:
            try:
                message = self._inbox.get(block=not self.engine.has_work)
            except queue.Empty:
                return True
            if isinstance(message, Stop):
                return False
            self._handle(message)

    def _handle(self, message: Add | Abort) -> None:
        if isinstance(message, Abort):
            self.engine.abort(message.request_id, message.index)
            return
        constraints: list[TokenConstraint] = []
        if message.grammar is not None:
            num_choices = message.request.params.n
            constraints = [message.grammar.new_constraint() for _ in range(num_choices)]
        self.engine.add(message.request, constraints)


class _Stream:
    """Where the outputs of one live request wait for whoever reads them."""

    def __init__(self, processor: OutputProcessor) -> None:
        self.processor = processor
        self.outputs: asyncio.Queue[RequestOutput | EngineDeadError] = asyncio.Queue()


class AsyncEngine:
    """The public engine. Build with `from_config`, then `start` it in a running event loop."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._engine = engine
        self._thread = EngineThread(engine, self._deliver_from_thread)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, _Stream] = {}
        self._grammars: GrammarCompiler | None = None

    @classmethod
    def from_config(
        cls, config: EngineConfig, progress: Callable[[str], None] = lambda _: None
    ) -> "AsyncEngine":
        """Load the model (blocking). `progress` gets one line for each slow thing begun.

        Raises `ModelLoadError` or `UnsupportedModelError` with a reason for people.
        """
        from stonechat_models.build import build_engine

        return cls(*build_engine(config, progress))

    @property
    def model(self) -> ModelInfo:
        return self._engine.model.info

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive

    @property
    def failure(self) -> BaseException | None:
        """Why the engine stopped, if it has failed."""
        return self._thread.failure

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def shutdown(self) -> None:
        """Stop after the current step. Requests still running end with `EngineDeadError`."""
        self._thread.send(Stop())
        await asyncio.to_thread(self._thread.join, 30.0)
        self._fail_streams("the engine was shut down")

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]:
        """Yield a request's news until its last, which has `finished` set.

        Closing the iterator early aborts the request. Raises, before the first output,
        `PromptTooLongError`, `InvalidParamsError`, `GrammarError` or `EngineDeadError`; after it,
        `EngineDeadError` if the engine stops.
        """
        self._check(request)
        grammar = await self._compile_grammar(request)
        stream = _Stream(OutputProcessor(self.tokenizer, request))
        self._streams[request.request_id] = stream
        self._thread.send(Add(request, grammar))
        if not self.is_alive:  # it may have died after the check
            self._fail_streams("the engine is not running")
        is_finished = False
        try:
            while not is_finished:
                output = await stream.outputs.get()
                if isinstance(output, EngineDeadError):
                    is_finished = True
                    raise output
                is_finished = output.finished
                yield output
        finally:
            self._streams.pop(request.request_id, None)
            if not is_finished:
                self._thread.send(Abort(request.request_id))

    def _check(self, request: GenerateRequest) -> None:
        if not self.is_alive:
            raise EngineDeadError("the engine is not running")
        if request.request_id in self._streams:
            raise InvalidParamsError("request_id", "a request of this id is running")
        num_prompt_tokens = len(request.prompt_token_ids)
        if num_prompt_tokens == 0:
            raise InvalidParamsError("messages", "the prompt has no tokens")
        if num_prompt_tokens >= self.model.max_model_len:
            raise PromptTooLongError(num_prompt_tokens, self.model.max_model_len)
        vocab_size = self.model.vocab_size
        for token_id in request.params.logit_bias:
            if not 0 <= token_id < vocab_size:
                raise InvalidParamsError(
                    "logit_bias", f"token id {token_id} is not in the vocabulary of {vocab_size}"
                )

    async def _compile_grammar(self, request: GenerateRequest) -> "CompiledGrammar | None":
        params = request.params
        if params.grammar is None and params.reasoning is None:
            return None
        if self._grammars is None:
            from stonechat_models.grammar import GrammarCompiler

            self._grammars = GrammarCompiler(self.tokenizer, self.model.vocab_size)
        return await asyncio.to_thread(self._grammars.compile, params.grammar, params.reasoning)

    # --- from the engine's thread to the event loop: one hop a step ---

    def _deliver_from_thread(self, outputs: list[TokenOutput]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._on_step, outputs)
        except RuntimeError:  # the loop is closed: nobody is left to read
            logger.debug("outputs of a step were dropped: the event loop is closed")

    def _on_step(self, outputs: list[TokenOutput]) -> None:
        by_request: defaultdict[str, list[TokenOutput]] = defaultdict(list)
        for output in outputs:
            by_request[output.request_id].append(output)
        for request_id, news in by_request.items():
            stream = self._streams.get(request_id)
            if stream is None:  # closed meanwhile; its abort is on the way
                continue
            try:
                stream.outputs.put_nowait(stream.processor.process(news))
            except Exception:
                logger.exception("the output of request %s cannot be read", request_id)
                stream.outputs.put_nowait(EngineDeadError("the output cannot be read"))
                self._thread.send(Abort(request_id))
                continue
            for index in stream.processor.take_stopped():
                self._thread.send(Abort(request_id, index))
        if self._thread.failure is not None:
            self._fail_streams(f"the engine has stopped: {self._thread.failure}")

    def _fail_streams(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.outputs.put_nowait(EngineDeadError(reason))
        self._streams.clear()
