"""What `stonechat chat` reads from the terminal, and the history that it keeps."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from stonechat_server.cli import main
from stonechat_server.commands.chat import command, line_input
from stonechat_server.commands.chat.line_input import LineInput

Event = str | type[BaseException]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that makes these the next lines of input; it returns the prompts shown."""

    def type_in(*events: Event, is_terminal: bool = True) -> list[str]:
        waiting, prompts = list(events), []

        def read_line(prompt: str) -> str:
            prompts.append(prompt)
            event = waiting.pop(0)
            if isinstance(event, str):
                return event
            raise event

        monkeypatch.setattr("builtins.input", read_line)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: is_terminal))
        return prompts

    return type_in


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80)


@pytest.fixture(autouse=True)
def _nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_input, "_is_waiting", lambda seconds: False)


def test_a_backslash_joins_lines(typed: Callable[..., list[str]]) -> None:
    prompts = typed("one \\", "two\\", "three", "four")
    lines = LineInput(console())
    assert lines.read() == "one \ntwo\nthree"
    assert lines.read() == "four"
    assert prompts == ["> ", "… ", "… ", "> "]


def test_the_end_of_the_input_ends_a_line_that_has_begun(typed: Callable[..., list[str]]) -> None:
    typed("one\\", EOFError, EOFError)
    lines = LineInput(console())
    assert lines.read() == "one"
    assert lines.read() is None


def test_ctrl_c_discards_the_line_on_a_terminal(typed: Callable[..., list[str]]) -> None:
    typed("one\\", KeyboardInterrupt)
    screen = console()
    assert LineInput(screen).read() == ""
    assert isinstance(screen.file, io.StringIO)
    assert "Ctrl-D leaves" in screen.file.getvalue()


def test_ctrl_c_ends_a_chat_on_a_pipe(typed: Callable[..., list[str]]) -> None:
    prompts = typed(KeyboardInterrupt, is_terminal=False)
    with pytest.raises(KeyboardInterrupt):
        LineInput(console()).read()
    assert prompts == [""]


def test_ctrl_c_has_its_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_talk", interrupted)
    assert main(["chat", "--url", "http://127.0.0.1:9/v1"]) == 130


@pytest.mark.parametrize("field", ["temperature", "=1"])
def test_a_field_must_have_a_name_and_a_value(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["chat", "--url", "http://127.0.0.1:9/v1", "--set", field])
    assert exit_info.value.code == 2
    assert "is not NAME=VALUE" in capsys.readouterr().err


def test_the_value_of_a_field_is_json_or_text() -> None:
    assert command._request_field("top_k=3") == ("top_k", 3)
    assert command._request_field('stop=["a=b"]') == ("stop", ["a=b"])
    assert command._request_field("stop=a=b") == ("stop", "a=b")


class Readline(ModuleType):
    """Keeps lines as the real module does."""

    def __init__(self) -> None:
        super().__init__("readline", "by GNU readline")
        self.bindings: list[str] = []
        self.lines: list[str] = []
        self.limit = -1

    def parse_and_bind(self, text: str) -> None:
        self.bindings.append(text)

    def read_history_file(self, path: Path) -> None:
        self.lines = path.read_text().splitlines()

    def set_history_length(self, limit: int) -> None:
        self.limit = limit

    def write_history_file(self, path: Path) -> None:
        assert path.exists()  # created with its mode before anything is written
        path.write_text("".join(f"{line}\n" for line in self.lines[-self.limit :]))


@pytest.fixture
def readline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Readline:
    module = Readline()
    monkeypatch.setitem(sys.modules, "readline", module)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return module


def test_lines_come_back_in_the_next_chat(readline: Readline, tmp_path: Path) -> None:
    with LineInput(console()).editing():
        assert readline.lines == []
        readline.lines += [f"line {number}" for number in range(1001)]
    (path,) = (tmp_path / "state").rglob("chat_history")
    assert path.stat().st_mode & 0o777 == 0o600
    readline.lines = []
    with LineInput(console()).editing():
        assert readline.lines == [f"line {number}" for number in range(1, 1001)]


def test_history_is_saved_after_an_error_too(readline: Readline, tmp_path: Path) -> None:
    def talk() -> None:
        with LineInput(console()).editing():
            readline.lines.append("last words")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        talk()
    (path,) = (tmp_path / "state").rglob("chat_history")
    assert path.read_text() == "last words\n"


def test_a_folder_that_cannot_be_written_ends_no_chat(readline: Readline, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with LineInput(console()).editing():
        readline.lines.append("x")
    assert (tmp_path / "state").read_text() == ""


@pytest.mark.parametrize("is_installed", [False, True])
def test_without_readline_or_a_terminal_there_is_no_history(
    is_installed: bool, readline: Readline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if is_installed:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    else:
        monkeypatch.setitem(sys.modules, "readline", None)
    with LineInput(console()).editing():
        readline.lines.append("x")
    assert list(tmp_path.rglob("chat_history")) == []


@pytest.mark.parametrize(
    ("waiting", "is_terminal", "expected"),
    [
        ([False, True, True], True, ["one\ntwo\nthree"]),
        ([False, True, False, False], True, ["one\ntwo", "three"]),
        ([True] * 9, True, ["one", "two", "three"]),  # typed while an answer came
        ([False, True, True], False, ["one", "two", "three"]),  # lines of a pipe are questions
    ],
)
def test_lines_that_follow_at_once_were_pasted(
    waiting: list[bool],
    is_terminal: bool,
    expected: list[str],
    typed: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed("one", "two", "three", EOFError, is_terminal=is_terminal)
    answers = iter(waiting)
    monkeypatch.setattr(line_input, "_is_waiting", lambda seconds: next(answers, False))
    lines = LineInput(console())
    assert list(iter(lines.read, None)) == expected


@pytest.mark.parametrize("editor", ["by GNU readline", "by libedit"])
def test_a_pasted_text_is_marked_where_the_editor_knows_it(editor: str, readline: Readline) -> None:
    readline.__doc__ = editor
    with LineInput(console()).editing():
        pass
    marks = ["set enable-bracketed-paste on"]
    assert readline.bindings == (marks if editor == "by GNU readline" else [])
