"""Kimi and Solar Open: sections of calls between special tokens.

Kimi K2: a call's id is its name and a number. K3: an argument states the type of its value. Solar
Open: an id of its own precedes the name; its second version has marks around each argument.
"""

from stonechat_server.tool_formats.layout import CallId, JsonLayout, TagLayout, ToolFormat

KIMI = ToolFormat(
    name="kimi",
    trigger="<|tool_calls_section_begin|>",
    layout=JsonLayout(
        before_name="<|tool_call_begin|>functions.",
        id=CallId(pattern="0|[1-9][0-9]{0,2}", before=":", names_call="name and id"),
        after_name="<|tool_call_argument_begin|>",
        after_arguments="<|tool_call_end|>",
        separator="",
        closing="<|tool_calls_section_end|>",
    ),
)
_TYPES = ("number", "boolean", "object", "array", "null")
KIMI_K3 = ToolFormat(
    name="kimi_k3",
    trigger="<|open|>tools<|sep|>",
    layout=TagLayout(
        before_name='<|open|>call tool="',
        id=CallId(pattern="[1-9][0-9]{0,2}", before='" index="', names_call="no"),
        after_name='"<|sep|>',
        before_key='<|open|>argument key="',
        after_key='" type="string"<|sep|>',
        after_json_keys=tuple(f'" type="{type}"<|sep|>' for type in _TYPES),
        after_value="<|close|>argument<|sep|>",
        after_arguments="<|close|>call<|sep|>",
        separator="",
        closing="<|close|>tools<|sep|>",
    ),
)

SOLAR = ToolFormat(
    name="solar",
    trigger="<|tool_calls|>",
    layout=JsonLayout(
        before_name="<|tool_call:begin|>",
        id=CallId(pattern="[a-zA-Z0-9_-]{1,40}", after="<|tool_call:name|>"),
        after_name="<|tool_call:args|>",
        after_arguments="<|tool_call:end|>",
        separator="",
    ),
)
SOLAR2 = ToolFormat(
    name="solar2",
    trigger="<|tool_call:start|>",
    layout=TagLayout(
        before_name="",
        after_name="\n",
        before_key="<|tool_arg:start|>",
        after_key="<|tool_arg:value|>",
        after_value="<|tool_arg:end|>\n",
        after_arguments="<|tool_call:end|>",
        separator="\n<|tool_call:start|>",
    ),
)
