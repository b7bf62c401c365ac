"""Texts and token ids, one or several, as `prompt` and `input` have them."""

from typing import Annotated, cast

from pydantic import Discriminator, Field

from stonechat_server.schema.base import ListOf
from stonechat_server.schema.sampling_fields import TokenId

TokenIds = Annotated[ListOf[TokenId], Field(min_length=1)]
Inputs = list[tuple[str, str | list[int]]]
"""Texts or token ids, each with its path in the body."""


def _kind(value: object) -> str:
    """Tell the forms apart by the first item, so that errors name the item at fault."""
    if not isinstance(value, list):
        return "a text"
    first = value[0] if value else None
    if isinstance(first, list):
        return "lists of ids"
    is_id = isinstance(first, int) and not isinstance(first, bool)
    return "a list of ids" if is_id else "a list of texts"


BY_KIND = Discriminator(_kind)
"""Picks a tag: `a text`, `a list of texts`, `a list of ids` or `lists of ids`. No key of an object
is called so, which the path of an error could be taken for."""


def inputs_of(name: str, value: str | list[str] | list[int] | list[list[int]]) -> Inputs:
    """The inputs of the field `name`."""
    if isinstance(value, str) or isinstance(value[0], int):
        return [(name, value)]
    return [(f"{name}[{i}]", item) for i, item in enumerate(cast(list[str | list[int]], value))]
