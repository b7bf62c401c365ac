"""What crosses between an ingress and a replica: typed records as MessagePack.

A call sends one `GenerateRequest`. The replica's stream has `Accepted`, then an `Output` for each
output of the engine, or `Failed` at its end. Nothing is unpickled but Ray's own envelope.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from stonechat_models import (
    EngineDeadError,
    EngineError,
    GenerateRequest,
    GrammarError,
    InvalidParamsError,
    ModelInfo,
    PromptTooLongError,
    RequestOutput,
)

MAX_TOKENIZER_FILE = 256 << 20
TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja", ".jinja2")


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first record of a stream: which replica runs the request."""

    replica: str
    time: float
    """When it came, on the replica's clock: `time.monotonic()` differs between machines."""


class Output(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One output of the engine. Times in it are on the replica's clock."""

    output: RequestOutput


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The last record of a stream that ends with an error of the engine."""

    kind: str
    message: str
    param: str = ""
    num_prompt_tokens: int = 0
    max_model_len: int = 0

    @classmethod
    def of(cls, error: EngineError) -> "Failed":
        """The record of an error."""
        if isinstance(error, PromptTooLongError):
            sizes = error.num_prompt_tokens, error.max_model_len
            return cls("PromptTooLongError", str(error), "", *sizes)
        if isinstance(error, InvalidParamsError):
            return cls("InvalidParamsError", str(error), error.param)
        for kind in (GrammarError, EngineDeadError):
            if isinstance(error, kind):
                return cls(kind.__name__, str(error))
        return cls("EngineError", str(error))

    def error(self) -> EngineError:
        """The error of the record."""
        match self.kind:
            case "PromptTooLongError":
                return PromptTooLongError(self.num_prompt_tokens, self.max_model_len)
            case "InvalidParamsError":
                return InvalidParamsError(self.param, self.message)
            case "GrammarError":
                return GrammarError(self.message)
            case "EngineDeadError":
                return EngineDeadError(self.message)
        return EngineError(self.message)


Record = Accepted | Output | Failed


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The model of a replica. `files` are those of its tokenizer, by name."""

    model: ModelInfo
    files: dict[str, bytes]


def _plain(value: object) -> object:
    """A subclass, or another kind of collection, as the built-in type."""
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to a replica")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_RECORDS = msgspec.msgpack.Decoder(Record)
_REQUESTS = msgspec.msgpack.Decoder(GenerateRequest)
_DESCRIPTIONS = msgspec.msgpack.Decoder(Description)


def encode(value: Record | GenerateRequest | Description) -> bytes:
    """The bytes of a record, a request or a description."""
    return _ENCODER.encode(value)


def decode_record(data: bytes) -> Record:
    """The record that a replica sent."""
    record: Record = _RECORDS.decode(data)
    return record


def decode_request(data: bytes) -> GenerateRequest:
    """The request that an ingress sent."""
    return _REQUESTS.decode(data)


def decode_description(data: bytes) -> Description:
    """The description that a replica sent."""
    return _DESCRIPTIONS.decode(data)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a tokenizer's folder, by name: no weights."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix in TOKENIZER_FILES
        and path.is_file()
        and path.stat().st_size <= MAX_TOKENIZER_FILE
    }
