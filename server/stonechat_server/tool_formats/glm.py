"""GLM-4.5 and later: the name, then two elements per argument: its key and its value.

GLM-4.5 writes line breaks between the elements, GLM-4.7 does not. IQuest-Coder 2, Hunyuan 3 and 4,
and K2 Horizon have tags of their own; the latter three have a tag around all calls, too.
"""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat


def _single(name: str, tag: str) -> ToolFormat:
    """Calls between `<tag>` and `</tag>`."""
    return ToolFormat(
        name=name,
        trigger=f"<{tag}>",
        layout=TagLayout(
            before_name="",
            after_name="\n",
            before_key="<arg_key>",
            after_key="</arg_key>\n<arg_value>",
            after_value="</arg_value>\n",
            after_arguments=f"</{tag}>",
            separator=f"\n<{tag}>",
        ),
    )


def _section(name: str, prefix: str = "", suffix: str = "", after_name: str = "\n") -> ToolFormat:
    """Calls between two tags. All tags begin with `prefix` and end with `suffix`."""

    def tag(text: str) -> str:
        return f"<{prefix}{text}{suffix}>"

    def end(text: str) -> str:
        return f"</{prefix}{text}{suffix}>"

    return ToolFormat(
        name=name,
        trigger=tag("tool_calls"),
        layout=TagLayout(
            before_name="\n" + tag("tool_call"),
            after_name=after_name,
            before_key=tag("arg_key"),
            after_key=f"{end('arg_key')}\n{tag('arg_value')}",
            after_value=end("arg_value") + "\n",
            after_arguments=end("tool_call"),
            separator="",
            closing="\n" + end("tool_calls"),
        ),
    )


_OPEN = ":opensource"
GLM = _single("glm", "tool_call")
IQUEST = _single("iquest", "iquestcoder_tool_call")
HUNYUAN3 = _section("hunyuan3", after_name="<tool_sep>\n")
HUNYUAN3_OPEN = _section("hunyuan3_open", suffix=_OPEN, after_name=f"<tool_sep{_OPEN}>\n")
HUNYUAN4 = _section("hunyuan4")
HUNYUAN4_OPEN = _section("hunyuan4_open", suffix=_OPEN)
K2_HORIZON = _section("k2_horizon", prefix="ifm|")
