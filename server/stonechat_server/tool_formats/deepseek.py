"""DeepSeek: special tokens around calls.

V3 and R1 put the arguments into a code fence, V3.1 does not. V3.2 writes `invoke` and `parameter`
elements; an attribute of a parameter states whether its value is a string. V4 has another tag
around the calls.
"""

from dataclasses import replace

from stonechat_server.tool_formats.layout import JsonLayout, TagLayout, ToolFormat


def _token(words: str) -> str:
    """A special token: fullwidth bars around its words, and U+2581 between the words."""
    return "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"


BEGIN = _token("tool calls begin")
_END = _token("tool calls end")
_CALL, _CALL_END, _SEP = (
    _token(words) for words in ("tool call begin", "tool call end", "tool sep")
)

DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    trigger=BEGIN,
    layout=JsonLayout(
        before_name=f"{_CALL}function{_SEP}",
        after_name="\n```json\n",
        after_arguments=f"\n```{_CALL_END}",
        separator="\n",
        closing=_END,
    ),
)
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    trigger=BEGIN,
    layout=JsonLayout(
        before_name=_CALL,
        after_name=_SEP,
        after_arguments=_CALL_END,
        separator="",
        closing=_END,
    ),
)

DSML = "\uff5cDSML\uff5c"

_DSML_LAYOUT = TagLayout(
    opening="\n",
    before_name=f'<{DSML}invoke name="',
    after_name='">\n',
    before_key=f'<{DSML}parameter name="',
    after_key='" string="true">',
    after_json_keys=('" string="false">',),
    after_value=f"</{DSML}parameter>\n",
    after_arguments=f"</{DSML}invoke>\n",
    separator="",
    closing=f"</{DSML}function_calls>",
)
DEEPSEEK_V32 = ToolFormat(
    name="deepseek_v32",
    trigger=f"<{DSML}function_calls>",
    layout=_DSML_LAYOUT,
)
DEEPSEEK_V4 = ToolFormat(
    name="deepseek_v4",
    trigger=f"<{DSML}tool_calls>",
    layout=replace(_DSML_LAYOUT, closing=f"</{DSML}tool_calls>"),
)
