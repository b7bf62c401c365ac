"""Llama 3.1 to 3.3: the whole answer is one JSON object with `name` and `parameters`."""

from stonechat_server.tool_formats.layout import JsonLayout, ToolFormat

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
