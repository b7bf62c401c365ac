"""Pythonic calls (Llama 3.2 and 4, and others): the whole answer is a list of Python calls."""

from stonechat_server.tool_formats.layout import PythonicLayout, ToolFormat

PYTHONIC = ToolFormat(
    name="pythonic",
    trigger="",
    prefix="<|python_start|>",
    first="[",
    layout=PythonicLayout(),
)
