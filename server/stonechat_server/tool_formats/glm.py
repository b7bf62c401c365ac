"""GLM-4.5 and later: the name, then two elements per argument: its key and its value."""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat

GLM = ToolFormat(
    name="glm",
    trigger="<tool_call>",
    first="<",
    layout=TagLayout(
        before_name="",
        after_name="\n",
        before_key="<arg_key>",
        after_key="</arg_key>\n<arg_value>",
        after_value="</arg_value>\n",
        after_arguments="</tool_call>",
        separator="\n<tool_call>",
    ),
)
