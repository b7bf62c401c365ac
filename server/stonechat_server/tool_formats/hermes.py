"""Hermes and Qwen: a JSON object between `<tool_call>` tags, one pair per call."""

from stonechat_server.tool_formats.layout import JsonLayout, ToolFormat

HERMES = ToolFormat(
    name="hermes",
    trigger="<tool_call>",
    first="<",
    layout=JsonLayout(
        before_name='\n{"name": "',
        after_name='", "arguments": ',
        after_arguments="}\n</tool_call>",
        separator="\n<tool_call>",
    ),
)
