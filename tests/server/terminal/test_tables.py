from rich.console import Console

from stonechat_server.terminal.tables import new_console, new_table


def test_in_a_pipe_a_table_is_plain_columns() -> None:
    long = "x" * 200
    console = new_console()
    with console.capture() as capture:
        console.print(new_table(("name", "size"), [(long, "1"), ("[b]", "12")]))
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines == [["name", "size"], [long, "1"], ["[b]", "12"]]


def test_in_a_terminal_long_names_are_folded() -> None:
    console = Console(width=20, force_terminal=True)
    with console.capture() as capture:
        console.print(new_table(("name", "size"), [("q" * 30, "12 bytes")]))
    assert capture.get().count("q") == 30
    assert "12 bytes" in capture.get()
