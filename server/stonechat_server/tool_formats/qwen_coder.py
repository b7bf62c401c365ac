"""Qwen3-Coder and models that follow it: XML-like tags that contain the names, a pair per call.

Seed-OSS has tags of its own, and no line breaks around values.
"""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat


def _functions(name: str, tag: str, gap: str) -> ToolFormat:
    """Calls between `<tag>` and `</tag>`, with `gap` before and after a value."""
    return ToolFormat(
        name=name,
        trigger=f"<{tag}>",
        layout=TagLayout(
            before_name="\n<function=",
            after_name=">\n",
            before_key="<parameter=",
            after_key=">" + gap,
            after_value=gap + "</parameter>\n",
            after_arguments=f"</function>\n</{tag}>",
            separator=f"\n<{tag}>",
        ),
    )


QWEN_CODER = _functions("qwen_coder", "tool_call", "\n")
SEED = _functions("seed", "seed:tool_call", "")
