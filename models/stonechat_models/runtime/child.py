"""What an engine process and its further ranks report in the same way."""

import logging

from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.ipc import FramePipe, LoadFailed, Log

logger = logging.getLogger(__name__)


def load_failure(error: Exception) -> LoadFailed:
    """Return what to send if loading fails. Logs what is no `ModelLoadError`."""
    if isinstance(error, ModelLoadError):
        return LoadFailed(type(error).__name__, str(error))
    logger.error("loading failed", exc_info=error)
    return LoadFailed("ModelLoadError", f"loading failed: {type(error).__name__}: {error}")


class _LogHandler(logging.Handler):
    """Sends log records to the server, which writes the log."""

    def __init__(self, pipe: FramePipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pipe.send(Log(record.name, record.levelno, self.format(record)))
        except Exception:
            self.handleError(record)


def send_logs(pipe: FramePipe, level: int) -> None:
    """Send all log records of this process through `pipe`."""
    logging.basicConfig(handlers=[_LogHandler(pipe)], level=level, format="%(message)s")
