"""The look of tables in the terminal. In a pipe they are plain columns, never cut or wrapped."""

from collections.abc import Iterable, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 10_000


def new_console(*, quiet: bool = False) -> Console:
    """The console for the output of a command."""
    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(quiet=quiet, width=PIPE_WIDTH)


def new_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]] = (), *, num_left: int = 1
) -> Table:
    """A table: the first `num_left` columns are left-aligned, the others right-aligned."""
    table = Table(box=SIMPLE_HEAD if Console().is_terminal else None, pad_edge=False)
    for index, heading in enumerate(headings):
        justify: Literal["left", "right"] = "left" if index < num_left else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values. The values may have rich's markup."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(f"[bold]{name}[/]", value)
    return table
