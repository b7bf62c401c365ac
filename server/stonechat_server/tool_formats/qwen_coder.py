"""Qwen3-Coder and models that follow it: XML-like tags that contain the names, a pair per call."""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat

QWEN_CODER = ToolFormat(
    name="qwen_coder",
    trigger="<tool_call>",
    first="<",
    layout=TagLayout(
        before_name="\n<function=",
        after_name=">\n",
        before_key="<parameter=",
        after_key=">\n",
        after_value="\n</parameter>\n",
        after_arguments="</function>\n</tool_call>",
        separator="\n<tool_call>",
    ),
)
