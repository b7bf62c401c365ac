"""Which connections are dropped for their silence, at times that the tests name."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from stonechat_server.serving.connections import SilentConnections, allow_many


@dataclass
class Transport:
    num_unsent: int = 0
    is_ending: bool = False
    is_aborted: bool = False

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def is_closing(self) -> bool:
        return self.is_ending

    def abort(self) -> None:
        self.is_aborted = True


@dataclass(eq=False)
class Connection:
    transport: Transport = field(default_factory=Transport)
    cycle: SimpleNamespace | None = None
    timeout_keep_alive_task: object | None = None


def cycle(is_complete: bool) -> SimpleNamespace:
    return SimpleNamespace(response_complete=is_complete)


def dropped(connection: object, times: list[float]) -> list[int]:
    silent = SilentConnections(seconds=30.0)
    return [silent.drop([connection], now) for now in times]


def test_half_a_request_is_dropped_in_time() -> None:
    connection = Connection()
    assert dropped(connection, [100.0, 129.9, 130.0]) == [0, 0, 1]
    assert connection.transport.is_aborted


@pytest.mark.parametrize(
    "connection",
    [
        Connection(cycle=cycle(False)),
        Connection(cycle=cycle(True), timeout_keep_alive_task=object()),
    ],
    ids=["running", "between requests"],
)
def test_others_are_left_alone(connection: object) -> None:
    assert dropped(connection, [0.0, 30.0, 1000.0]) == [0, 0, 0]


def test_a_closing_connection_is_dropped_unless_its_client_reads() -> None:
    slow = Connection(Transport(num_unsent=100, is_ending=True), cycle=cycle(False))
    silent = SilentConnections(seconds=30.0)
    assert silent.drop([slow], 0.0) == 0
    slow.transport.num_unsent = 50
    assert silent.drop([slow], 29.0) == 0
    assert silent.drop([slow], 58.0) == 0
    assert silent.drop([slow], 59.0) == 1


def test_a_request_ends_the_silence() -> None:
    connection = Connection()
    silent = SilentConnections(seconds=30.0)
    assert silent.drop([connection], 0.0) == 0
    connection.cycle = cycle(False)
    assert silent.drop([connection], 20.0) == 0
    connection.cycle = cycle(True)
    assert [silent.drop([connection], now) for now in (40.0, 69.0, 70.0)] == [0, 0, 1]


def resource_with(soft: int, hard: int, error: type[Exception] | None = None) -> ModuleType:
    module = ModuleType("resource")
    limits = [soft, hard]

    def set_limit(_: int, new: tuple[int, int]) -> None:
        if error is not None:
            raise error
        limits[:] = new

    module.RLIMIT_NOFILE = 7  # type: ignore[attr-defined]
    module.getrlimit = lambda _: tuple(limits)  # type: ignore[attr-defined]
    module.setrlimit = set_limit  # type: ignore[attr-defined]
    return module


def test_the_limit_on_files_is_raised_to_the_most_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = resource_with(1024, 4096)
    monkeypatch.setitem(sys.modules, "resource", module)
    allow_many()
    assert module.getrlimit(7) == (4096, 4096)
    allow_many()
    assert module.getrlimit(7) == (4096, 4096)


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_limit_that_cannot_be_raised_stays(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = resource_with(1024, 4096, error)
    monkeypatch.setitem(sys.modules, "resource", module)
    allow_many()
    assert module.getrlimit(7) == (1024, 4096)


def test_a_system_without_the_limit_has_nothing_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    allow_many()
    with pytest.raises(ImportError):
        import resource  # noqa: F401
