"""What the source of a chat template shows about the model's answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from stonechat_server.parsers.answer_marks import AnswerMarks, find_answer_marks
from stonechat_server.parsers.reasoning import ReasoningMarkers, find_markers
from stonechat_server.tool_formats.hermes import GENERIC
from stonechat_server.tool_formats.layout import ToolFormat
from stonechat_server.tool_formats.select import FORMATS, select_format

_TOOLS = re.compile(r"\btools\b|\+ functions\b")
"""The variables with tools: the usual one, and that of FireFunction."""


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """See the module."""

    renders_tools: bool
    renders_calls: bool
    """Whether the calls of earlier messages are in the prompt, in the format's own form."""
    format: ToolFormat
    markers: ReasoningMarkers | None
    marks: AnswerMarks | None
    shapes_answers: bool
    """Whether an answer without tools may hold more than content: reasoning, marks or messages."""

    @property
    def is_known(self) -> bool:
        """Whether tools that the template renders are called in a form that it shows.

        If not, the prompt must also describe the form.
        """
        return not self.renders_tools or self.format is not GENERIC


UNKNOWN_FORM = (
    "its chat template shows tools, but no form of calls that is known here: calls have the "
    "generic form, which is described in the prompt (see --tool-format)"
)
"""Said of a model whose traits are not `is_known`."""


def read_traits(
    template: str, tool_format: str, is_token: Callable[[str], bool], *, has_reasoning: bool
) -> TemplateTraits:
    """Read the traits. `tool_format` is a name in `FORMATS`, or `auto`.

    Some templates render calls and no tools, so the server describes the tools. Others render tools
    and no calls, so the server writes earlier calls into the text of their messages.
    """
    renders_tools = _TOOLS.search(template) is not None
    has_calls = "tool_calls" in template
    format = select_format(template) if renders_tools or has_calls else GENERIC
    if tool_format != "auto":
        format = FORMATS[tool_format]
    markers = find_markers(template, is_token) if has_reasoning else None
    marks = find_answer_marks(template)
    return TemplateTraits(
        renders_tools=renders_tools,
        renders_calls=has_calls and (renders_tools or format is not GENERIC),
        format=format,
        markers=markers,
        marks=marks,
        shapes_answers=markers is not None or marks is not None or format.has_messages,
    )
