"""Reasoning as an opaque text that a client keeps and gives back (`encrypted_content`).

It is encoded, not encrypted: who holds it can read it. Nothing in it is trusted: it is text that
the client could as well send openly.
"""

import base64

PREFIX = "stonechat-1."


def encode_reasoning(text: str) -> str:
    """Encode the text of a reasoning item."""
    return PREFIX + base64.urlsafe_b64encode(text.encode()).decode()


def decode_reasoning(content: str) -> str | None:
    """Return the text, or None if `content` was not made by `encode_reasoning`."""
    if not content.startswith(PREFIX):
        return None
    try:
        return base64.b64decode(content[len(PREFIX) :], altchars=b"-_", validate=True).decode()
    except ValueError:
        return None
