"""MiniMax M2: `<invoke>` elements with `<parameter>` elements, all calls in one section."""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat

MINIMAX = ToolFormat(
    name="minimax",
    trigger="<minimax:tool_call>",
    first="<",
    layout=TagLayout(
        opening="\n",
        before_name='<invoke name="',
        after_name='">\n',
        before_key='<parameter name="',
        after_key='">',
        after_value="</parameter>\n",
        after_arguments="</invoke>\n",
        separator="",
        closing="</minimax:tool_call>",
    ),
)
