"""Reads what is typed or pasted in a terminal, and keeps its history."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

PASTE_SECONDS = 0.02
"""Lines of a pasted text follow each other within this time."""


class LineInput:
    """The lines of the input. In a terminal they can be edited, and old ones come back.

    A pasted text is read as one, however many lines it has. Most terminals mark where it begins and
    ends. Where they do not, the lines that follow a line at once belong to it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_terminal = sys.stdin.isatty()
        self._joins_lines = self._is_terminal and os.name == "posix"

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Line editing and a saved history, if readline is installed."""
        try:
            import readline
        except ImportError:
            yield
            return
        if not self._is_terminal:
            yield
            return
        from platformdirs import user_state_path

        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")
        path = user_state_path("stonechat", appauthor=False) / "chat_history"
        with suppress(OSError):  # there is no history yet
            readline.read_history_file(path)
        try:
            yield
        finally:
            _write_history(path)

    def read(self) -> str | None:
        """Read a question or a command; a backslash at the end of a line joins it with the next.

        Returns None at the end of the input.
        """
        prompt = "> " if self._console.is_terminal and self._is_terminal else ""
        lines: list[str] = []
        while True:
            is_typed_ahead = self._joins_lines and _is_waiting(0.0)  # each line is a question
            try:
                line = input(prompt if not lines else "… ")
                if self._joins_lines and not is_typed_ahead:
                    line = "\n".join([line, *_lines_at_once()])
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if not prompt:
                    raise
                self._console.print("\nCtrl-D leaves", style="dim")
                return ""
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])


def _lines_at_once() -> Iterator[str]:
    """Yield the lines that are there already."""
    while _is_waiting(PASTE_SECONDS):
        yield input("")


def _is_waiting(seconds: float) -> bool:
    """Whether there is input, or comes within this time."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _write_history(path: Path) -> None:
    import readline

    readline.set_history_length(1000)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.write_history_file(path)
    except OSError:
        return  # a read-only home folder: the history is not saved
