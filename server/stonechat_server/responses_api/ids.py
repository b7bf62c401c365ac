"""The ids of items: that of their response, with a prefix of their own and a number behind it."""

RESPONSE_PREFIX = "resp_"
RANDOM_LENGTH = 24
"""Digits of a response's id that are behind its prefix."""


def item_id(prefix: str, response_id: str, number: int, mark: str = "") -> str:
    """The id of an item of an answer, or of its input if that has a mark."""
    return f"{prefix}_{response_id.removeprefix(RESPONSE_PREFIX)}{mark}{number:02x}"


def response_id_of(item_id: str) -> str:
    """The id of the answer that has this item, if it is one of an answer."""
    return RESPONSE_PREFIX + item_id.partition("_")[2][:RANDOM_LENGTH]
