"""How an answer is shown while it grows, and the figures behind it."""

import io

import pytest
from rich.console import Console

from stonechat_server.client.stream_recorder import MeasuredPromptDetails, MeasuredUsage
from stonechat_server.commands.chat.api import ChatAnswer
from stonechat_server.commands.chat.view import AnswerView, figures


def screen(is_terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=is_terminal, width=80, color_system=None, _environ={}
    )
    return console, file


def test_all_figures_are_in_one_line() -> None:
    answer = ChatAnswer(started_at=10.0)
    assert figures(answer) == ""
    answer.finish_reason = "stop"
    assert figures(answer) == ""
    answer.usage = MeasuredUsage(12, 5)
    assert figures(answer) == "12 prompt tokens · 5 generated"
    answer.usage = MeasuredUsage(12, 5, MeasuredPromptDetails(cached_tokens=8, image_tokens=4))
    answer.first_at, answer.last_at, answer.chunks = 10.25, 12.25, 5
    answer.finish_reason, answer.ignored = "length", "top_q"
    assert figures(answer) == (
        "12 prompt tokens (4 of images, 8 cached) · 5 generated · first token after 250 ms · "
        "2.0 tokens/s · length · ignored by the server: top_q"
    )


@pytest.mark.parametrize("markdown", [False, True])
def test_a_pipe_gets_exactly_the_text(markdown: bool) -> None:
    console, file = screen(is_terminal=False)
    answer = ChatAnswer(started_at=0.0)
    with AnswerView(console, markdown) as view:
        for text in ("**Hel", "**Hello**", "**Hello** [x]\n"):
            answer.text = text
            view.update(answer)
        view.finish(answer)
    assert file.getvalue() == "**Hello** [x]\n\n"


def test_a_terminal_gets_markdown_reasoning_and_figures() -> None:
    console, file = screen(is_terminal=True)
    answer = ChatAnswer(started_at=0.0, reasoning=" Think first. ", text="**Hello** you")
    answer.usage = MeasuredUsage(2, 3)
    with AnswerView(console, True) as view:
        view.update(answer)
        view.finish(answer)
    lines = [line.strip() for line in file.getvalue().splitlines()]
    end = lines[-3:]
    assert end[0].endswith("Think first.")
    assert "Hello you" in end[1]
    assert end[2] == "2 prompt tokens · 3 generated"


def test_plain_text_on_a_terminal_has_figures_too() -> None:
    console, file = screen(is_terminal=True)
    answer = ChatAnswer(started_at=0.0, text="**Hello**")
    answer.usage = MeasuredUsage(2, 3)
    with AnswerView(console, False) as view:
        view.update(answer)
        view.finish(answer)
    assert file.getvalue() == "**Hello**\n2 prompt tokens · 3 generated\n"
