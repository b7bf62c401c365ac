"""The parent's side of an engine process or a rank: it starts, loads, receives from and ends it."""

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import Pipe

from stonechat_models import errors
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.ipc import (
    Frame,
    FramePipe,
    LoadFailed,
    Log,
    Progress,
    Ready,
    Start,
)
from stonechat_models.runtime.runner import Died

logger = logging.getLogger(__name__)

SECONDS_TO_ASK = 0.2
"""How often it is asked whether a model that loads is still wanted."""


class WorkerProcess:
    """Runs `module` in a child process. A thread writes to the pipe, so that `send` never waits.

    `name` is for messages. `environment` is added to that of this process.
    """

    def __init__(
        self,
        config: EngineConfig,
        module: str = "stonechat_models.runtime.worker_main",
        name: str = "the engine process",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        search_path = os.pathsep.join(path for path in sys.path if path)
        ours, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(number)],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {}), "PYTHONPATH": search_path},
            )
        self.pipe = FramePipe(ours)
        """Once `load` has returned, frames may be sent from any thread, without `send`."""
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="stonechat-outbox", daemon=True).start()
        self.send(Start(config, logging.getLogger().getEffectiveLevel()))

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, frame: Frame) -> None:
        """Queue a frame. It is discarded if the process has ended.

        Raises `TypeError` if a value cannot be encoded.
        """
        self._outbox.put(self.pipe.encode(frame))

    def load(
        self, progress: Callable[[str], None], is_wanted: Callable[[], bool] = lambda: True
    ) -> Ready:
        """Wait until the model is loaded.

        Raises `ModelLoadError`, also once `is_wanted` returns False, after ending the process.
        """
        try:
            while True:
                while not self.pipe.wait(SECONDS_TO_ASK):
                    if not is_wanted():
                        raise ModelLoadError("the model is not wanted any more")
                frame = self.receive()
                match frame:
                    case Ready():
                        return frame
                    case Progress(line):
                        progress(line)
                    case LoadFailed(name, message):
                        raise load_error(name, message)
                    case Died(reason):
                        raise ModelLoadError(reason)
                    case None:
                        raise ModelLoadError(
                            f"{self._name} {self.end(1.0)} while loading the model"
                        )
        except BaseException:
            self.end(0.0)
            raise

    def receive(self) -> Frame | None:
        """Return the next frame, or None if the process has ended. Log records are logged here."""
        while True:
            try:
                frame = self.pipe.receive()
            except (EOFError, OSError):
                return None
            if not isinstance(frame, Log):
                return frame
            logging.getLogger(frame.logger).log(frame.level, "%s", frame.text)

    def end(self, patience: float) -> str:
        """Wait `patience` seconds for the process to exit, then kill it. Return how it ended."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._outbox.put(None)
        return _describe(self._process.returncode)

    def _write(self) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                self.pipe.send_encoded(data)
            except OSError:
                logger.debug("a message was discarded: %s has ended", self._name)


def load_error(name: str, message: str) -> ModelLoadError:
    """Return the error of a `LoadFailed`."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ModelLoadError):
        return kind(message)
    return ModelLoadError(message)


def _describe(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
