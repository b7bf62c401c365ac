"""Runs the engine in a thread. Another thread compiles grammars."""

import logging
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_models.engine.engine import Engine
from stonechat_models.errors import EngineDeadError, GrammarError
from stonechat_models.runtime.runner import (
    Abort,
    Add,
    Deliver,
    Died,
    Message,
    Refused,
    StepOutputs,
    Stop,
)
from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import EngineStats, GenerateRequest, ModelInfo

if TYPE_CHECKING:
    from stonechat_models.grammar.compiler import GrammarCompiler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _CompiledRequest:
    """A request whose grammar is compiled, with one constraint per choice; or its refusal."""

    request: GenerateRequest
    constraints: list[TokenConstraint]
    refused: Refused | None = None


class EngineThread:
    """Owns the engine: once started, no other thread calls it. See `EngineRunner`."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._failure: BaseException | None = None
        self._deliver: Deliver = lambda _: None
        self._inbox: queue.SimpleQueue[Message | _CompiledRequest] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="stonechat-engine", daemon=True)
        self._grammars = _GrammarThread(tokenizer, engine.model.info.vocab_size, self._inbox)
        self._compiling: dict[str, tuple[GenerateRequest, Future[None]]] = {}
        self._is_reported = True
        """False if messages may have changed the stats since the last report."""

    @property
    def model(self) -> ModelInfo:
        return self.engine.model.info

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._failure is None

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._thread.start()

    def send(self, message: Message) -> None:
        self._inbox.put(message)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def _main(self) -> None:
        try:
            while self._handle_messages():
                self._report(StepOutputs(self.engine.step()))
                if self.engine.is_broken:
                    raise EngineDeadError("every request failed in several steps in a row")
        except BaseException as error:
            logger.critical("the engine has stopped", exc_info=error)
            self._failure = error
            self._deliver(Died(f"the engine has stopped: {error}"))
        finally:
            self._grammars.stop()

    def _report(self, report: StepOutputs) -> None:
        self._is_reported = True
        self._deliver(report)

    def _handle_messages(self) -> bool:
        """Handle all waiting messages; wait for one if the engine has no work.

        Returns False after `Stop`.
        """
        while True:
            try:
                message = self._inbox.get(block=False)
            except queue.Empty:
                if self.engine.has_work:
                    return True
                if not self._is_reported:
                    self._report(StepOutputs(()))
                message = self._inbox.get()
            if isinstance(message, Stop):
                return False
            self._handle(message)

    def _handle(self, message: Add | Abort | _CompiledRequest) -> None:
        self._is_reported = False
        match message:
            case Abort(request_id, index):
                if index is None and request_id in self._compiling:
                    self._compiling.pop(request_id)[1].cancel()  # has no effect once it runs
                self.engine.abort(request_id, index)
            case Add(request):
                if request.params.grammar is None and request.params.reasoning is None:
                    self.engine.add(request)
                else:
                    future = self._grammars.compile(request)
                    self._compiling[request.request_id] = request, future
            case _CompiledRequest(request, constraints, refused):
                entry = self._compiling.get(request.request_id)
                if entry is None or entry[0] is not request:  # aborted meanwhile
                    return
                del self._compiling[request.request_id]
                if refused is not None:
                    self._deliver(refused)
                else:
                    self.engine.add(request, constraints)


class _GrammarThread:
    """Compiles grammars in a thread of its own, which starts with the first grammar."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        results: "queue.SimpleQueue[Message | _CompiledRequest]",
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._results = results
        self._executor: ThreadPoolExecutor | None = None
        self._compiler: GrammarCompiler | None = None

    def compile(self, request: GenerateRequest) -> "Future[None]":
        """Compile a request's grammar later. The result goes into the queue `results`."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="stonechat-grammar")
        return self._executor.submit(self._compile, request)

    def stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _compile(self, request: GenerateRequest) -> None:
        try:
            result = _CompiledRequest(request, self._constraints(request))
        except GrammarError as error:
            result = _CompiledRequest(
                request, [], Refused(request.request_id, "grammar", str(error))
            )
        except Exception:
            logger.exception("the grammar of request %s cannot be compiled", request.request_id)
            text = "the grammar compiler has failed"
            result = _CompiledRequest(request, [], Refused(request.request_id, "internal", text))
        self._results.put(result)

    def _constraints(self, request: GenerateRequest) -> list[TokenConstraint]:
        if self._compiler is None:
            from stonechat_models.grammar.compiler import GrammarCompiler

            self._compiler = GrammarCompiler(self._tokenizer, self._vocab_size)
        params = request.params
        compiled = self._compiler.compile(params.grammar, params.reasoning)
        return [compiled.new_constraint() for _ in range(params.n)]
