"""Qwen3-Coder and models that follow it: XML-like tags that contain the names, a pair per call.

Seed-OSS has tags of its own, and no line breaks around values.
"""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat

QWEN_CODER = ToolFormat(
    name="qwen_coder",
    trigger="<tool_call>",
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

SEED = ToolFormat(
    name="seed",
    trigger="<seed:tool_call>",
    layout=TagLayout(
        before_name="\n<function=",
        after_name=">\n",
        before_key="<parameter=",
        after_key=">",
        after_value="</parameter>\n",
        after_arguments="</function>\n</seed:tool_call>",
        separator="\n<seed:tool_call>",
    ),
)
