"""The whole answer is the calls, and no mark opens them: an object, or a list of Python calls."""

from stonechat_server.tool_formats.layout import JsonLayout, PythonicLayout, ToolFormat

LLAMA_JSON = ToolFormat(
    name="llama_json",
    trigger="",
    prefix="<|python_tag|>",
    first="{",
    layout=JsonLayout(
        before_name='{"name": "',
        after_name='", "parameters": ',
        after_arguments="}",
        separator="; ",
    ),
    is_parallel=False,
)
"""Llama 3.1 to 3.3."""

PYTHONIC = ToolFormat(
    name="pythonic",
    trigger="",
    prefix="<|python_start|>",
    first="[",
    layout=PythonicLayout(),
)
"""Llama 3.2 and 4, and others."""
