"""The engine process: `python -m stonechat_models.runtime.worker_main FD`. FD is one end of a pipe.

It loads the model and steps the engine until it receives `Stop` or the other end of the pipe
closes. It ignores SIGINT and SIGTERM, which may reach the whole process group but are meant for the
server: the server drains first and then sends `Stop`.
"""

import gc
import logging
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from stonechat_models.config import EngineConfig
from stonechat_models.errors import EngineError, ModelLoadError
from stonechat_models.hardware.cuda_start import start_driver
from stonechat_models.runtime.child import load_failure, send_logs
from stonechat_models.runtime.ipc import FramePipe, Progress, Ready, Start
from stonechat_models.runtime.runner import Abort, Add, Died, Report, StepOutputs, Stop

if TYPE_CHECKING:
    from stonechat_models.runtime.thread_runner import EngineThread

logger = logging.getLogger(__name__)


def main(file_descriptor: int) -> int:
    """Run until `Stop`. Return the exit status: 0, or 1 after a failure."""
    gc.disable()  # objects made at start live on, so a collection frees nothing
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pipe = FramePipe(Connection(file_descriptor))
    try:
        start = pipe.receive()
    except EOFError:
        return 0
    assert isinstance(start, Start)
    send_logs(pipe, start.log_level)
    inbox = _Inbox(pipe)
    inbox.start()
    runner = _load(start.config, pipe)
    if runner is None:
        return 1
    inbox.runner = runner
    gc.freeze()
    gc.enable()
    pipe.send(Ready(runner.model, str(runner.tokenizer.path.parent)))
    runner.start(lambda report: _deliver(pipe, runner, report))
    runner.join(threading.TIMEOUT_MAX)
    gc.unfreeze()  # libraries look for leaks at the end
    status = 0 if runner.failure is None else 1
    if start.config.tensor_parallel > 1:  # a usual exit may wait for other ranks
        os._exit(status)
    return status


def _load(config: EngineConfig, pipe: FramePipe) -> "EngineThread | None":
    try:
        # Other ranks have processes and devices of their own.
        if config.tensor_parallel == 1 and start_driver(config.device_name) is not None:
            _import_early(config)
        from stonechat_models.runtime.build import build_engine
        from stonechat_models.runtime.thread_runner import EngineThread

        return EngineThread(
            *build_engine(
                config,
                lambda line: pipe.send(Progress(line)),
                give_up=lambda error: _give_up(pipe, error),
            )
        )
    except Exception as error:
        pipe.send(load_failure(error))
    return None


def _import_early(config: EngineConfig) -> None:
    """Import what a CUDA device needs. Later collections need not look at it: it lives on."""
    if config.backend != "native":
        from stonechat_models.backends.transformers.loading.importing import import_transformers

        import_transformers()
        gc.freeze()


def _give_up(pipe: FramePipe, error: EngineError) -> None:
    """End this process, from any thread, also while another waits for a device or another rank."""
    try:
        pipe.send(load_failure(error) if isinstance(error, ModelLoadError) else Died(str(error)))
    finally:
        os._exit(1)


def _deliver(pipe: FramePipe, runner: "EngineThread", report: Report) -> None:
    try:
        if isinstance(report, StepOutputs):
            pipe.send(StepOutputs(report.outputs, runner.stats()))
        else:
            pipe.send(report)
    except OSError:  # the server has ended, and this process is about to
        logger.debug("a report was discarded: the pipe is closed")


class _Inbox:
    """Reads the pipe from the start, so that even a loading process ends with the server."""

    def __init__(self, pipe: FramePipe) -> None:
        self.runner: EngineThread | None = None
        self._pipe = pipe
        self._thread = threading.Thread(target=self._main, name="stonechat-inbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _main(self) -> None:
        while True:
            try:
                frame = self._pipe.receive()
            except (EOFError, OSError):
                os._exit(0)
            assert isinstance(frame, Add | Abort | Stop)
            if self.runner is None:  # stopped while loading
                os._exit(0)
            self.runner.send(frame)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
