"""Runs the engine in a process of its own, and starts it again after a crash.

The event loop and the step loop then share no interpreter lock, and a fault of a driver or a kernel
does not end the server. After a crash `is_alive` turns False, `Died` is reported, and a new process
loads the model.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stonechat_models.config import EngineConfig
from stonechat_models.errors import EngineDeadError, ModelLoadError
from stonechat_models.model_info import EngineStats, ModelInfo
from stonechat_models.runtime.ipc import Ready
from stonechat_models.runtime.runner import Deliver, Died, Message, Refused, StepOutputs, Stop
from stonechat_models.runtime.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

SECONDS_TO_EXIT = 10.0


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a crashed engine is started again. The wait before it doubles each time."""

    max_restarts: int = 5
    """Consecutive restarts; 0: none. An engine that has run for `healthy_seconds` resets the
    count."""
    first_delay: float = 1.0
    healthy_seconds: float = 600.0

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before restart number `attempt`, counted from 0."""
        return float(self.first_delay * 2**attempt)


class EngineProcess:
    """Runs an engine in a child process; see `EngineRunner`. Build it with `load`."""

    def __init__(
        self, config: EngineConfig, child: WorkerProcess, ready: Ready, restarts: RestartPolicy
    ) -> None:
        self._config = config
        self._child = child
        self._ready = ready
        self._restarts = restarts
        self._num_restarts = 0
        self._deliver: Deliver = lambda _: None
        self.failure: BaseException | None = None
        self._is_serving = False
        self._stopping = threading.Event()
        self._stats = EngineStats(num_blocks=ready.model.num_blocks)
        self._thread = threading.Thread(
            target=self._main, name="stonechat-engine-process", daemon=True
        )

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        progress: Callable[[str], None],
        restarts: RestartPolicy | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> "EngineProcess":
        """Start the process, call `meanwhile`, and wait until the model is loaded.

        `is_wanted` is asked several times a second. Raises `ModelLoadError`, also once the model
        is not wanted, and what `meanwhile` raises, after ending the process.
        """
        child = WorkerProcess(config)
        try:
            meanwhile()
        except BaseException:
            child.end(0.0)
            raise
        return cls(config, child, child.load(progress, is_wanted), restarts or RestartPolicy())

    @property
    def model(self) -> ModelInfo:
        return self._ready.model

    @property
    def tokenizer_folder(self) -> Path:
        return Path(self._ready.tokenizer_folder)

    @property
    def process_id(self) -> int:
        return self._child.process_id

    @property
    def is_alive(self) -> bool:
        return self._is_serving and self._child.is_running

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._is_serving = True
        self._thread.start()

    def send(self, message: Message) -> None:
        if isinstance(message, Stop):
            self._stopping.set()
        self._child.send(message)

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the process to end, then kill it."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._child.end(0.0)

    def stats(self) -> EngineStats:
        return self._stats

    # --- in this class's own thread ---

    def _main(self) -> None:
        while True:
            start_time = time.monotonic()
            reason = self._pass_on_reports()
            self._is_serving = False
            if self._stopping.is_set():
                self._child.end(SECONDS_TO_EXIT)
                return
            ending = self._child.end(SECONDS_TO_EXIT)
            reason = reason or f"the engine process {ending}"
            logger.error("%s", reason)
            self._stats = EngineStats()
            if self._restarts.max_restarts == 0:
                self.failure = EngineDeadError(reason)
                self._deliver(Died(reason))
                return
            self._deliver(Died(reason))
            if time.monotonic() - start_time >= self._restarts.healthy_seconds:
                self._num_restarts = 0
            if not self._restart():
                return

    def _pass_on_reports(self) -> str | None:
        """Deliver reports until the process ends. Return the reason that it reports, if any."""
        while (frame := self._child.receive()) is not None:
            match frame:
                case StepOutputs():
                    assert frame.stats is not None, "it comes from another process"
                    self._stats = frame.stats
                    self._deliver(frame)
                case Refused():
                    self._deliver(frame)
                case Died(reason):
                    return reason
        return None

    def _restart(self) -> bool:
        """Start a new process. Return False if stopped meanwhile, or if no restart is left."""
        while self._num_restarts < self._restarts.max_restarts:
            if self._stopping.wait(self._restarts.delay(self._num_restarts)):
                return False
            self._num_restarts += 1
            logger.warning(
                "starting the engine again (%d of %d)",
                self._num_restarts,
                self._restarts.max_restarts,
            )
            self._child = WorkerProcess(self._config)
            if self._stopping.is_set():  # only the previous process may have got it
                self._child.send(Stop())
            try:
                self._ready = self._child.load(logger.info)
            except ModelLoadError as error:
                logger.error("%s", error)
                continue
            self._is_serving = not self._stopping.is_set()
            return True
        if not self._stopping.is_set():
            self.failure = EngineDeadError(
                f"the engine has stopped, and {self._num_restarts} restarts did not help"
            )
            logger.critical("%s", self.failure)
        return False
