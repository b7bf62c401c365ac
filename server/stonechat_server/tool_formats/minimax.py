"""MiniMax M2: `<invoke>` elements with `<parameter>` elements, all calls in one section.

M3 has a mark before every tag, and elements called like the parameters, nested like the values.
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
    first="<",
    layout=replace(INVOKES, closing="</minimax:tool_call>"),
)

_MARK = "]<]minimax[>["
MINIMAX_M3 = ToolFormat(
    name="minimax_m3",
    trigger=f"{_MARK}<tool_call>",
    first="]",
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
