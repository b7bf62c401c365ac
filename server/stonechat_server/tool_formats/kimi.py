"""Kimi K2: a section of calls between tokens; a call's id is its name and a number."""

from stonechat_server.tool_formats.layout import JsonLayout, ToolFormat

KIMI = ToolFormat(
    name="kimi",
    trigger="<|tool_calls_section_begin|>",
    first="<",
    layout=JsonLayout(
        before_name="<|tool_call_begin|>functions.",
        after_name=":",
        after_number="<|tool_call_argument_begin|>",
        after_arguments="<|tool_call_end|>",
        separator="",
        closing="<|tool_calls_section_end|>",
    ),
)
