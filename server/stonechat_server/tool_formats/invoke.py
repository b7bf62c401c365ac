"""Elements with the names as attributes: MiniMax M2, MiniCPM5, Step 3, dots.

MiniMax M3 has a mark before every tag, and elements called like the parameters, nested like the
values.
"""

from dataclasses import replace

from stonechat_server.tool_formats.layout import ElementLayout, TagLayout, ToolFormat

INVOKES = TagLayout(
    opening="\n",
    before_name='<invoke name="',
    after_name='">\n',
    before_key='<parameter name="',
    after_key='">',
    after_value="</parameter>\n",
    after_arguments="</invoke>\n",
    separator="",
)
"""The elements; each format that has them adds the closing tag of its section."""

MINIMAX = ToolFormat(
    name="minimax",
    trigger="<minimax:tool_call>",
    layout=replace(INVOKES, closing="</minimax:tool_call>"),
)

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
DOTS = ToolFormat(
    name="dots",
    trigger="<dots_function_call>",
    layout=replace(INVOKES, closing="</dots_function_call>"),
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
