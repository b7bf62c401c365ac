"""Seed-OSS: like Qwen3-Coder, with its own tags and without line breaks around values."""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat

SEED = ToolFormat(
    name="seed",
    trigger="<seed:tool_call>",
    first="<",
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
