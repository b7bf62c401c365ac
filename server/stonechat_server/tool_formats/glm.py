"""GLM-4.5 and later: the name, then a pair of elements for each argument's key and value."""

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
