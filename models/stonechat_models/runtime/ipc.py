"""The pipe between a server and its engine process: typed records as length-prefixed MessagePack.

A frame is one byte that tells the record's type, then its fields. Nothing is unpickled.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from stonechat_models.config import EngineConfig
from stonechat_models.runtime.runner import Abort, Add, Died, Refused, Stop
from stonechat_models.types import EngineStats, ModelInfo, TokenOutput


@dataclass(frozen=True, slots=True)
class Start:
    """The first frame to the process: load this. Log records below `log_level` are not sent."""

    config: EngineConfig
    log_level: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A line for people, while loading."""

    line: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Loaded; requests may come. The tokenizer's files lie in `tokenizer_folder`."""

    model: ModelInfo
    tokenizer_folder: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be served; `error` is the name of an exception of `errors`."""

    error: str
    message: str


@dataclass(frozen=True, slots=True)
class StepReport:
    """The news of a step, and the engine's stats after it."""

    outputs: Sequence[TokenOutput]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Log:
    """A log record of the process, formatted but for its time."""

    logger: str
    level: int
    text: str


Frame = (
    Start | Add | Abort | Stop | Progress | Ready | LoadFailed | StepReport | Refused | Died | Log
)
_TYPES: tuple[type[Frame], ...] = (
    Start,
    Add,
    Abort,
    Stop,
    Progress,
    Ready,
    LoadFailed,
    StepReport,
    Refused,
    Died,
    Log,
)


class FramePipe:
    """One end of a pipe. Any thread may send; one thread at a time receives."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
        self._decoders = [msgspec.msgpack.Decoder(kind) for kind in _TYPES]

    def encode(self, frame: Frame) -> bytes:
        """A frame as `send_encoded` takes it. Raises `TypeError` for what no frame can hold."""
        kind = _TYPES.index(type(frame))
        return bytes((kind,)) + self._encoder.encode(frame)

    def send(self, frame: Frame) -> None:
        """Raises `OSError` when the other end is gone."""
        self.send_encoded(self.encode(frame))

    def send_encoded(self, data: bytes) -> None:
        """Raises `OSError` when the other end is gone."""
        with self._lock:
            self._connection.send_bytes(data)

    def receive(self) -> Frame:
        """Wait for a frame. Raises `EOFError` or `OSError` when the other end is gone."""
        data = self._connection.recv_bytes()
        frame: Frame = self._decoders[data[0]].decode(memoryview(data)[1:])
        return frame

    def close(self) -> None:
        self._connection.close()


def _plain(value: object) -> object:
    """The built-in form of a subclass or another kind of collection."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to the engine process")
