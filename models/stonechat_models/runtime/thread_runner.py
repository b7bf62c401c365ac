"""Runs the engine in a thread. Two more compile grammars: one the cheap ones, one the others."""

import logging
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stonechat_models.engine.batch_engine import BatchEngine
from stonechat_models.engine.engine import Engine
from stonechat_models.errors import EngineDeadError, GrammarError
from stonechat_models.model_info import EngineStats, ModelInfo
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
from stonechat_models.types import GenerateRequest

if TYPE_CHECKING:
    from stonechat_models.grammar.compiler import GrammarCompiler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _CompiledRequest:
    """A request whose grammar is compiled, with one constraint per choice; or its refusal."""

    request: GenerateRequest
    result: list[TokenConstraint] | Refused


class EngineThread:
    """Owns the engine: once started, no other thread calls it. See `EngineRunner`."""

    def __init__(self, engine: Engine | BatchEngine[Any], tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.model: ModelInfo = engine.model.info
        self.tokenizer = tokenizer
        self.failure: BaseException | None = None
        self._deliver: Deliver = lambda _: None
        self._inbox: queue.SimpleQueue[Message | _CompiledRequest] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="stonechat-engine", daemon=True)
        self._grammars = _GrammarThreads(tokenizer, engine.model.info.vocab_size, self._inbox)
        self._compiling: dict[str, tuple[GenerateRequest, Future[None]]] = {}

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

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
                self._deliver(StepOutputs(self.engine.step()))
                if self.engine.is_broken:
                    raise EngineDeadError("every request failed in several steps in a row")
        except BaseException as error:
            logger.critical("the engine has stopped", exc_info=error)
            self.failure = error
            self._deliver(Died(f"the engine has stopped: {error}"))
        finally:
            self._grammars.stop()

    def _handle_messages(self) -> bool:
        """Handle all waiting messages; wait for one if the engine has no work.

        Returns False after `Stop`.
        """
        is_reported = True
        """False if messages may have changed the stats since the last report."""
        while True:
            try:
                message = self._inbox.get(block=False)
            except queue.Empty:
                if self.engine.has_work:
                    return True
                if not is_reported:
                    self._deliver(StepOutputs(()))
                    is_reported = True
                message = self._inbox.get()
            if isinstance(message, Stop):
                return False
            self._handle(message)
            is_reported = False

    def _handle(self, message: Add | Abort | _CompiledRequest) -> None:
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
            case _CompiledRequest(request, result):
                entry = self._compiling.get(request.request_id)
                if entry is None or entry[0] is not request:  # aborted meanwhile
                    return
                del self._compiling[request.request_id]
                if isinstance(result, Refused):
                    self._deliver(result)
                else:
                    self.engine.add(request, result)


_Task = tuple[GenerateRequest, "Future[None]"]


class _GrammarThreads:
    """Compiles grammars in threads of their own, which start with the first grammar.

    A costly grammar is compiled in the second thread, so that the cheap ones do not wait for it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        results: "queue.SimpleQueue[Message | _CompiledRequest]",
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._results = results
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._costly_tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._is_started = False
        self._is_stopped = False
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def compile(self, request: GenerateRequest) -> "Future[None]":
        """Compile a request's grammar later. The result goes into the queue `results`."""
        if not self._is_started:
            self._is_started = True
            self._start("stonechat-grammar", self._tasks)
            self._start("stonechat-costly-grammar", self._costly_tasks)
        future: Future[None] = Future()
        self._tasks.put((request, future))
        return future

    def stop(self) -> None:
        """Begin no more grammars. Does not wait for those that are being compiled."""
        self._is_stopped = True
        for tasks in (self._tasks, self._costly_tasks):
            tasks.put(None)

    def _start(self, name: str, tasks: "queue.SimpleQueue[_Task | None]") -> None:
        """Start a thread that nobody waits for, not even at the end of the process."""
        threading.Thread(target=self._main, args=(tasks,), name=name, daemon=True).start()

    def _main(self, tasks: "queue.SimpleQueue[_Task | None]") -> None:
        from stonechat_models.grammar.cost import is_cheap

        while (task := tasks.get()) is not None:
            request, future = task
            grammar = request.params.grammar
            if tasks is self._tasks and grammar is not None and not is_cheap(grammar):
                self._costly_tasks.put(task)
            elif not self._is_stopped and future.set_running_or_notify_cancel():
                self._compile(request)

    def _compile(self, request: GenerateRequest) -> None:
        request_id, params = request.request_id, request.params
        result: list[TokenConstraint] | Refused
        try:
            compiled = self._shared_compiler().compile(params.grammar, params.reasoning)
            result = [compiled.new_constraint() for _ in range(params.n)]
        except GrammarError as error:
            result = Refused(request_id, "grammar", str(error))
        except Exception:
            logger.exception("the grammar of request %s cannot be compiled", request_id)
            result = Refused(request_id, "internal", "the grammar compiler has failed")
        self._results.put(_CompiledRequest(request, result))

    def _shared_compiler(self) -> "GrammarCompiler":
        with self._lock:
            if self._compiler is None:
                from stonechat_models.grammar.compiler import GrammarCompiler

                self._compiler = GrammarCompiler(self._tokenizer, self._vocab_size)
            return self._compiler
