"""Formats of a marker and a list of calls: JSON (Nemotron, Granite, Phi-4-mini), Python (LFM2)."""

from stonechat_server.tool_formats.layout import JsonLayout, PythonicLayout, ToolFormat


def _list_format(name: str, opening: str, closing: str) -> ToolFormat:
    return ToolFormat(
        name=name,
        trigger=opening,
        first="<",
        layout=JsonLayout(
            opening="[",
            before_name='{"name": "',
            after_name='", "arguments": ',
            after_arguments="}",
            separator=", ",
            closing="]" + closing,
        ),
    )


NEMOTRON = _list_format("nemotron", "<TOOLCALL>", "</TOOLCALL>")
GRANITE = _list_format("granite", "<|tool_call|>", "")
PHI = _list_format("phi", "<|tool_call|>", "<|/tool_call|>")

LFM2 = ToolFormat(
    name="lfm2",
    trigger="<|tool_call_start|>",
    first="<",
    layout=PythonicLayout(closing="<|tool_call_end|>"),
)
