"""GLM-4.5 and later: the name, then two elements per argument: its key and its value.

GLM-4.5 writes line breaks between the elements, GLM-4.7 does not. Hunyuan 3 has tags of its own.
"""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat

GLM = ToolFormat(
    name="glm",
    trigger="<tool_call>",
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


def _hunyuan3(name: str, suffix: str) -> ToolFormat:
    """The format of Hunyuan 3, whose tags all end with `suffix`."""
    return ToolFormat(
        name=name,
        trigger=f"<tool_calls{suffix}>",
        layout=TagLayout(
            before_name=f"\n<tool_call{suffix}>",
            after_name=f"<tool_sep{suffix}>\n",
            before_key=f"<arg_key{suffix}>",
            after_key=f"</arg_key{suffix}>\n<arg_value{suffix}>",
            after_value=f"</arg_value{suffix}>\n",
            after_arguments=f"</tool_call{suffix}>",
            separator="",
            closing=f"\n</tool_calls{suffix}>",
        ),
    )


HUNYUAN3 = _hunyuan3("hunyuan3", "")
HUNYUAN3_OPEN = _hunyuan3("hunyuan3_open", ":opensource")
