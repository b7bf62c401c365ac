"""The ids of items, and reasoning as an opaque text: what clients keep, and give back as it is."""

import base64

RESPONSE_PREFIX = "resp_"
ENCODED_PREFIX = "stonechat-1."
"""Begins reasoning (`encrypted_content`). It is encoded, not encrypted: who holds it can read it.
Nothing in it is trusted: it is text that the client could as well send openly."""
RANDOM_LENGTH = 24
"""Digits of a response's id that are behind its prefix."""


def item_id(prefix: str, response_id: str, number: int, mark: str = "") -> str:
    """The id of an item of an answer, or of its input if that has a mark."""
    return f"{prefix}_{response_id.removeprefix(RESPONSE_PREFIX)}{mark}{number:02x}"


def response_id_of(item_id: str) -> str:
    """The id of the answer that has this item, if it is one of an answer."""
    return RESPONSE_PREFIX + item_id.partition("_")[2][:RANDOM_LENGTH]


def encode_reasoning(text: str) -> str:
    """Encode the text of a reasoning item."""
    return ENCODED_PREFIX + base64.urlsafe_b64encode(text.encode()).decode()


def decode_reasoning(content: str) -> str | None:
    """Return the text, or None if `content` was not made by `encode_reasoning`."""
    if not content.startswith(ENCODED_PREFIX):
        return None
    try:
        encoded = content.removeprefix(ENCODED_PREFIX)
        return base64.b64decode(encoded, altchars=b"-_", validate=True).decode()
    except ValueError:
        return None
