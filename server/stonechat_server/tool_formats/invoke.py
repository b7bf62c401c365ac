"""Elements with the names as attributes: MiniCPM5, Step 3, dots."""

from dataclasses import replace

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat
from stonechat_server.tool_formats.minimax import INVOKES

MINICPM5 = ToolFormat(
    name="minicpm5",
    trigger="<function name",
    first="<",
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
    first="<",
    layout=replace(INVOKES, closing="</dots_function_call>"),
)


def _step(words: str) -> str:
    """A special token of Step 3: fullwidth bars around its words."""
    return f"<\uff5c{words}\uff5c>"


STEP3 = ToolFormat(
    name="step3",
    trigger=_step("tool_calls_begin"),
    first="<",
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
