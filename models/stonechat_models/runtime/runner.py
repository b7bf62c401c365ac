"""The protocol of a runner, which runs an engine in a thread or a process, and its messages.

Messages go in through `send`. Reports come out through the function passed to `start`. Nothing else
is shared. Every message and report is a plain record that can also cross a pipe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from stonechat_models.errors import EngineError, GrammarError
from stonechat_models.model_info import EngineStats, ModelInfo
from stonechat_models.types import GenerateRequest, TokenOutput


@dataclass(frozen=True, slots=True)
class Add:
    """Start a request. Its grammar is compiled first, outside the step loop."""

    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request, or one choice of it."""

    request_id: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End the runner after the current step."""


Message = Add | Abort | Stop


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """The outputs of one step; may be empty."""

    outputs: Sequence[TokenOutput]
    stats: EngineStats | None = None
    """The engine's after the step, if they come from another process."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was not started; `message` says why."""

    request_id: str
    kind: Literal["grammar", "internal"]
    message: str

    @property
    def error(self) -> EngineError:
        return (GrammarError if self.kind == "grammar" else EngineError)(self.message)


@dataclass(frozen=True, slots=True)
class Died:
    """The engine has stopped. Requests sent before this get no more outputs."""

    reason: str


Report = StepOutputs | Refused | Died
Deliver = Callable[[Report], None]


class EngineRunner(Protocol):
    """Owns an engine. `send` never blocks. A thread of the runner delivers the reports."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def is_alive(self) -> bool:
        """True while messages are answered; False before `start`."""

    @property
    def failure(self) -> BaseException | None:
        """Why the engine stopped, if it has failed and is not started again."""

    def start(self, deliver: Deliver) -> None: ...

    def send(self, message: Message) -> None: ...

    def join(self, timeout: float) -> None:
        """Wait for the end after `Stop`, at most `timeout` seconds."""

    def stats(self) -> EngineStats: ...
