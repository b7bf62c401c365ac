"""A JSON object per call, between two tags: Hermes and Qwen (`<tool_call>`), and others.

MiroThinker names a server before each tool.
"""

from dataclasses import replace

from stonechat_server.tool_formats.layout import CallId, JsonLayout, ToolFormat


def tagged_json(name: str, opening: str, closing: str, gap: str = "\n") -> ToolFormat:
    """Calls between `opening` and `closing`, with `gap` as trained next to both."""
    return ToolFormat(
        name=name,
        trigger=opening,
        layout=JsonLayout(
            before_name=gap + '{"name": "',
            after_name='", "arguments": ',
            after_arguments="}" + gap * bool(closing) + closing,
            separator="\n" + opening,
        ),
    )


HERMES = tagged_json("hermes", "<tool_call>", "</tool_call>")
GENERIC = replace(HERMES, name="generic")
"""For models whose template renders no tools. `tool_prompt` explains it to the model."""
LONGCAT = tagged_json("longcat", "<longcat_tool_call>", "</longcat_tool_call>")
GRANITE_20B = tagged_json("granite_20b", "<function_call>", "", " ")
GIGACHAT = replace(
    tagged_json("gigachat", "<|function_call|>", "", ""),
    is_parallel=False,
)
GIGACHAT3 = replace(
    tagged_json("gigachat3", "<|message_sep|>\n\nfunction call<|role_sep|>\n", "", ""),
    is_parallel=False,
)
INTERNLM2 = ToolFormat(
    name="internlm2",
    trigger="<|action_start|><|plugin|>",
    layout=JsonLayout(
        before_name='\n{"name": "',
        after_name='", "arguments": ',
        after_arguments="}<|action_end|>",
        separator="<|action_start|><|plugin|>",
    ),
)
FUNCTIONARY = ToolFormat(
    name="functionary",
    trigger="<function=",
    layout=JsonLayout(
        before_name="",
        after_name=">",
        after_arguments="</function>",
        separator="<function=",
    ),
)
FUNCTIONARY32 = ToolFormat(
    name="functionary32",
    trigger=">>>",
    opens_in_prompt=True,
    layout=JsonLayout(
        before_name="",
        after_name="\n",
        after_arguments="",
        separator=">>>",
    ),
)
MCP = ToolFormat(
    name="mcp",
    trigger="<use_mcp_tool>",
    layout=JsonLayout(
        before_name="\n<server_name>",
        id=CallId(
            pattern="[a-zA-Z0-9_-]{1,64}", after="</server_name>\n<tool_name>", names_call="no"
        ),
        after_name="</tool_name>\n<arguments>\n",
        after_arguments="\n</arguments>",
        separator="",
        closing="\n</use_mcp_tool>",
    ),
)
