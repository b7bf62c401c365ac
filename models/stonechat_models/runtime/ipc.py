"""The pipes between a server, its engine process and that process's further ranks.

They carry typed records as length-prefixed MessagePack. A frame is one byte for the record's type,
then the record's fields. Nothing is unpickled.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, get_args

import msgspec

from stonechat_models.config import EngineConfig
from stonechat_models.model_info import ModelInfo
from stonechat_models.runtime.runner import Abort, Add, Died, Refused, StepOutputs, Stop


@dataclass(frozen=True, slots=True)
class Start:
    """The first frame to the process: what to load. No log records are sent below `log_level`."""

    config: EngineConfig
    log_level: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A line to show to the user while loading."""

    line: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; requests may follow. `tokenizer_folder` has the tokenizer's files."""

    model: ModelInfo
    tokenizer_folder: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded. `error` is the name of an exception in `errors`."""

    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Log:
    """A log record of the process. `text` is formatted, but without the time."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class CountFree:
    """To a rank: take part in finding how much memory is free on every device."""


@dataclass(frozen=True, slots=True)
class Allocate:
    """To a rank: allocate the KV cache, and wait until all ranks have done so."""

    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class CopyBlocks:
    """To a rank: copy KV blocks, (source, destination)."""

    pairs: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class RunStep:
    """To a rank: run the step of a `ForwardBatch`. `runtime/ranks/messages` reads and writes it."""

    num_tokens: int
    num_rows: int
    num_seqs: int
    longs: bytes
    """int64: token ids, positions, slots, and the index of each row of logits."""
    ints: bytes
    """int32: the start of each sequence and the last one's end, context lengths, block table."""


Frame = (
    Start
    | Add
    | Abort
    | Stop
    | Progress
    | Ready
    | LoadFailed
    | StepOutputs
    | Refused
    | Died
    | Log
    | CountFree
    | Allocate
    | CopyBlocks
    | RunStep
)
_TYPES: tuple[type[Frame], ...] = get_args(Frame)


class FramePipe:
    """One end of a pipe. Any thread may send; only one thread at a time may receive."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder(enc_hook=plain)
        self._decoders = [msgspec.msgpack.Decoder(kind) for kind in _TYPES]

    def encode(self, frame: Frame) -> bytes:
        """Return the bytes for `send_encoded`. Raises `TypeError` if a value cannot be encoded."""
        kind = _TYPES.index(type(frame))
        return bytes((kind,)) + self._encoder.encode(frame)

    def send(self, frame: Frame) -> None:
        """Send a frame. Raises `OSError` if the other end is closed."""
        self.send_encoded(self.encode(frame))

    def send_encoded(self, data: bytes) -> None:
        """Send the bytes from `encode`. Raises `OSError` if the other end is closed."""
        with self._lock:
            self._connection.send_bytes(data)

    def receive(self) -> Frame:
        """Wait for a frame. Raises `EOFError` or `OSError` if the other end is closed."""
        data = self._connection.recv_bytes()
        frame: Frame = self._decoders[data[0]].decode(memoryview(data)[1:])
        return frame

    def wait(self, seconds: float) -> bool:
        """Wait for a frame, or for the end of the pipe. Return False if neither has come."""
        return self._connection.poll(seconds)

    def close(self) -> None:
        self._connection.close()


def plain(value: object) -> object:
    """Return a subclass, or another kind of collection, as the built-in type."""
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
