"""Mistral: `[TOOL_CALLS]` and a JSON list.

Models with newer tokenizers write `[TOOL_CALLS]name[ARGS]{…}` per call; some of them write
`[CALL_ID]` and an id after the name.
"""

import secrets
import string

from stonechat_server.tool_formats.layout import CallId, JsonLayout, ToolFormat


def new_short_id() -> str:
    """Nine letters and digits: Mistral's templates accept no other ids."""
    alphabet = string.ascii_letters + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(9))


MISTRAL_LIST = ToolFormat(
    name="mistral_list",
    trigger="[TOOL_CALLS]",
    layout=JsonLayout(
        opening=" [",
        before_name='{"name": "',
        after_name='", "arguments": ',
        after_arguments="}",
        separator=", ",
        closing="]",
        has_id_key=True,
    ),
    new_id=new_short_id,
)
MISTRAL = ToolFormat(
    name="mistral",
    trigger="[TOOL_CALLS]",
    layout=JsonLayout(
        before_name="",
        id=CallId(pattern="[a-zA-Z0-9]{9}", before="[CALL_ID]", is_optional=True),
        after_name="[ARGS]",
        after_arguments="",
        separator="[TOOL_CALLS]",
    ),
    new_id=new_short_id,
)
