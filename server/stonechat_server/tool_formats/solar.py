"""Solar Open: an id, the name and the arguments of each call between special tokens."""

from stonechat_server.tool_formats.layout import CallId, JsonLayout, ToolFormat

SOLAR = ToolFormat(
    name="solar",
    trigger="<|tool_calls|>",
    first="<",
    layout=JsonLayout(
        before_name="<|tool_call:begin|>",
        id=CallId(pattern="[a-zA-Z0-9_-]{1,40}", after="<|tool_call:name|>"),
        after_name="<|tool_call:args|>",
        after_arguments="<|tool_call:end|>",
        separator="",
    ),
)
