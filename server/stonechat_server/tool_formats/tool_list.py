"""A marker and a list of calls: JSON (Nemotron, Granite, xLAM, HyperCLOVA, …), or Python (LFM2)."""

from stonechat_server.tool_formats.layout import CallId, JsonLayout, PythonicLayout, ToolFormat


def _list_format(
    name: str, opening: str, closing: str = "", *, has_id_key: bool = False
) -> ToolFormat:
    return ToolFormat(
        name=name,
        trigger=opening,
        first="" if opening else "[",
        layout=JsonLayout(
            opening="[",
            before_name='{"name": "',
            after_name='", "arguments": ',
            after_arguments="}",
            separator=", ",
            closing="]" + closing,
            has_id_key=has_id_key,
        ),
    )


NEMOTRON = _list_format("nemotron", "<TOOLCALL>", "</TOOLCALL>")
GRANITE = _list_format("granite", "<|tool_call|>")
PHI = _list_format("phi", "<|tool_call|>", "<|/tool_call|>")
TOOL_CALLS = _list_format("tool_calls", "<tool_calls>", "</tool_calls>", has_id_key=True)
FUNCTOOLS = _list_format("functools", "functools")
XLAM = _list_format("xlam", "")
HYPERCLOVA = _list_format("hyperclova", "-> tool/function_call\n")
PANGU = _list_format("pangu", "[unused11]", "[unused12]")

MINIMAX_M1 = ToolFormat(
    name="minimax_m1",
    trigger="<tool_calls>",
    layout=JsonLayout(
        before_name='\n{"name": "',
        after_name='", "arguments": ',
        after_arguments="}",
        separator="",
        closing="\n</tool_calls>",
    ),
)
APERTUS = ToolFormat(
    name="apertus",
    trigger="<|tools_prefix|>",
    layout=JsonLayout(
        opening="[",
        before_name='{"',
        after_name='": ',
        after_arguments="}",
        separator=", ",
        closing="]<|tools_suffix|>",
    ),
)
COMMAND_R = ToolFormat(
    name="command_r",
    trigger="Action:\n```json",
    layout=JsonLayout(
        opening="\n[\n    ",
        before_name='{\n        "tool_name": "',
        after_name='",\n        "parameters": ',
        after_arguments="\n    }",
        separator=",\n    ",
        closing="\n]```",
    ),
)
COHERE = ToolFormat(
    name="cohere",
    trigger="<|START_ACTION|>",
    layout=JsonLayout(
        opening="[\n    ",
        before_name='{"tool_call_id": "',
        id=CallId(pattern="[0-9]{1,3}", after='", "tool_name": "', names_call="no"),
        after_name='", "parameters": ',
        after_arguments="}",
        separator=",\n    ",
        closing="\n]<|END_ACTION|>",
    ),
)

LFM2 = ToolFormat(
    name="lfm2",
    trigger="<|tool_call_start|>",
    layout=PythonicLayout(closing="]<|tool_call_end|>"),
)
OLMO3 = ToolFormat(
    name="olmo3",
    trigger="<function_calls>",
    layout=PythonicLayout(opening="", separator="\n", closing="</function_calls>"),
)
