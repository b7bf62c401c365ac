"""DeepSeek: special tokens around calls.

V3 and R1 put the arguments into a code fence, V3.1 does not. V3.2 writes `invoke` and `parameter`
elements; an attribute of a parameter states whether its value is a string. V4 has another tag
around the calls, V4.1 has a space in each tag, and GigaChat 3.5 has a mark of its own.
"""

from stonechat_server.tool_formats.invoke import invokes
from stonechat_server.tool_formats.layout import JsonLayout, ToolFormat


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


def _elements(name: str, mark: str, section: str) -> ToolFormat:
    """A format whose tags begin with `mark`. `section` is the tag around the calls."""
    is_text, is_json = ('" string="true">', '" string="false">')
    return invokes(name, mark + section, mark, is_text, (is_json,))


DSML, GCML = "\uff5cDSML\uff5c", "\uff5cGCML\uff5c"
DEEPSEEK_V32 = _elements("deepseek_v32", DSML, "function_calls")
DEEPSEEK_V4 = _elements("deepseek_v4", DSML, "tool_calls")
DEEPSEEK_V41 = _elements("deepseek_v41", DSML + " ", "calls")
GIGACHAT35 = _elements("gigachat35", GCML, "tool_calls")
