"""Shows a streamed answer: as growing Markdown in a terminal, else as plain text."""

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from stonechat_server.commands.chat.api import ChatAnswer

LINES_KEPT_FREE = 3


class Tail:
    """The last lines of its content, so that a live view never outgrows the screen."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options, pad=False)
        for line in lines[-max(1, console.size.height - LINES_KEPT_FREE) :]:
            yield from line
            yield Segment.line()


class AnswerView:
    """Shows one answer while it arrives, and the complete answer at its end."""

    def __init__(self, console: Console, markdown: bool) -> None:
        self._console = console
        self._live: Live | None = None
        if markdown and console.is_terminal:
            self._live = Live(console=console, refresh_per_second=12, transient=True)
        self._num_shown = 0

    def __enter__(self) -> "AnswerView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, answer: ChatAnswer) -> None:
        """Show the new part of the answer."""
        if self._live is not None:
            self._live.update(Tail(_renderable(answer)))
            return
        self._console.out(answer.text[self._num_shown :], end="", highlight=False)
        self._num_shown = len(answer.text)

    def finish(self, answer: ChatAnswer) -> None:
        """Show the complete answer and, in a terminal, its figures."""
        self.__exit__()
        if self._live is not None:
            self._console.print(_renderable(answer))
        else:
            self._console.out("")
        if self._console.is_terminal:
            self._console.print(figures(answer), style="dim", highlight=False)


def _renderable(answer: ChatAnswer) -> RenderableType:
    if not answer.reasoning:
        return Markdown(answer.text)
    return Group(Text(answer.reasoning.strip(), style="dim italic"), Markdown(answer.text))


def figures(answer: ChatAnswer) -> str:
    """Token counts, times and speed in one line."""
    parts = []
    if (usage := answer.usage) is not None:
        counts = (
            (usage.details.image_tokens, "of images"),
            (usage.details.audio_tokens, "of audio"),
            (usage.details.cached_tokens, "cached"),
        )
        details = ", ".join(f"{number} {name}" for number, name in counts if number)
        parts.append(f"{usage.prompt_tokens} prompt tokens{f' ({details})' if details else ''}")
        parts.append(f"{usage.completion_tokens} generated")
    if answer.first_at is not None:
        parts.append(f"first token after {(answer.first_at - answer.started_at) * 1000:.0f} ms")
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.finish_reason not in (None, "stop"):
        parts.append(str(answer.finish_reason))
    if answer.ignored:
        parts.append(f"ignored by the server: {answer.ignored}")
    return " · ".join(parts)
