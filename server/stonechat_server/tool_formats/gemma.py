"""Gemma 4 and FunctionGemma: bare keys, and strings between special tokens."""

from stonechat_server.tool_formats.layout import DictLayout, ToolFormat

GEMMA4 = ToolFormat(
    name="gemma4",
    trigger="<|tool_call>",
    layout=DictLayout(
        before_name="call:",
        quote='<|"|>',
        after_arguments="<tool_call|>",
        separator="<|tool_call>",
    ),
)
FUNCTION_GEMMA = ToolFormat(
    name="function_gemma",
    trigger="<start_function_call>",
    layout=DictLayout(
        before_name="call:",
        quote="<escape>",
        after_arguments="<end_function_call>",
        separator="<start_function_call>",
    ),
)
