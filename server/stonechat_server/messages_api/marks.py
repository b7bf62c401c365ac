"""What the server writes into opaque strings of an answer, and reads when they come back."""

import base64
from typing import Any

from stonechat_server.messages_api.blocks import ThinkingBlock

_SIGNATURE = "stonechat."
_OWN_CALL, _CALL = "call_", "toolu_"

INVALID_JSON = "INVALID_JSON"
"""The only key of a call's input whose text is no JSON object, as a limit cut it. Its value is that
text."""


def signature(hidden: str = "") -> str:
    """The signature of a thinking block, with the text that the block itself does not show."""
    return _SIGNATURE + base64.urlsafe_b64encode(hidden.encode()).decode()


def hidden_thinking(signature: str | None) -> str:
    """The text in a signature. Signatures of other services have none."""
    if signature is None or not signature.startswith(_SIGNATURE):
        return ""
    try:
        return base64.urlsafe_b64decode(signature.removeprefix(_SIGNATURE)).decode()
    except ValueError:
        return ""


def is_foreign(block: ThinkingBlock) -> bool:
    """Whether a thinking block has no text, but the signature of another service."""
    signature = block.signature or ""
    return not block.thinking and bool(signature) and not signature.startswith(_SIGNATURE)


def to_call_id(id: str) -> str:
    """The id of a call as clients of this endpoint expect it. Ids that a model wrote stay."""
    return _CALL + id.removeprefix(_OWN_CALL) if id.startswith(_OWN_CALL) else id


def from_call_id(id: str) -> str:
    """Undo `to_call_id`, so that the prompt is the same as in chat completions."""
    return _OWN_CALL + id.removeprefix(_CALL) if id.startswith(_CALL) else id


def to_arguments(input: dict[str, Any]) -> dict[str, Any] | str:
    """The arguments of a call: an object, or the text that was none."""
    text = input.get(INVALID_JSON)
    return text if len(input) == 1 and isinstance(text, str) else input
