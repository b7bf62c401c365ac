"""Elements with the names as attributes: MiniMax M2, MiniCPM5, Step 3, dots.

MiniMax M3 has a mark before every tag, and elements called like the parameters, nested like the
values.
"""

from stonechat_server.tool_formats.layout import ElementLayout, TagLayout, ToolFormat


def invokes(
    name: str,
    section: str,
    prefix: str = "",
    after_key: str = '">',
    after_json_keys: tuple[str, ...] = (),
) -> ToolFormat:
    """Calls within a tag `section`. The names of the tags of a call begin with `prefix`."""
    return ToolFormat(
        name=name,
        trigger=f"<{section}>",
        layout=TagLayout(
            opening="\n",
            before_name=f'<{prefix}invoke name="',
            after_name='">\n',
            before_key=f'<{prefix}parameter name="',
            after_key=after_key,
            after_json_keys=after_json_keys,
            after_value=f"</{prefix}parameter>\n",
            after_arguments=f"</{prefix}invoke>\n",
            separator="",
            closing=f"</{section}>",
        ),
    )


MINIMAX = invokes("minimax", "minimax:tool_call")
DOTS = invokes("dots", "dots_function_call")

_MARK = "]<]minimax[>["
MINIMAX_M3 = ToolFormat(
    name="minimax_m3",
    trigger=f"{_MARK}<tool_call>",
    layout=ElementLayout(
        opening="\n",
        before_name=f'{_MARK}<invoke name="',
        after_name='">',
        mark=_MARK,
        after_arguments=f"{_MARK}</invoke>\n",
        separator="",
        closing=f"{_MARK}</tool_call>",
    ),
)

MINICPM5 = ToolFormat(
    name="minicpm5",
    trigger="<function name",
    layout=TagLayout(
        before_name='="',
        after_name='">',
        before_key='<param name="',
        after_key='">',
        after_value="</param>",
        after_arguments="</function>",
        separator="\n<function name",
        has_cdata=True,
    ),
)


def _step(words: str) -> str:
    """A special token of Step 3: fullwidth bars around its words."""
    return f"<\uff5c{words}\uff5c>"


STEP3 = ToolFormat(
    name="step3",
    trigger=_step("tool_calls_begin"),
    layout=TagLayout(
        opening="\n",
        before_name=f'{_step("tool_call_begin")}function{_step("tool_sep")}<steptml:invoke name="',
        after_name='">\n',
        before_key='<steptml:parameter name="',
        after_key='">',
        after_value="</steptml:parameter>\n",
        after_arguments=f"</steptml:invoke>{_step('tool_call_end')}\n",
        separator="",
        closing=_step("tool_calls_end"),
    ),
)
