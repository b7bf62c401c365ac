"""The base class of all models of what a client sends."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
"""The name of a tool or of a schema."""
ListOf = Annotated[list[T], Field(fail_fast=True)]
"""A list that is checked up to its first wrong item: an error per item would take long."""


def _whole(value: object) -> object:
    """Make a float that is whole an integer: some languages have no other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A number without a fraction, also one such as 100.0."""
MinusOne = Annotated[Literal[-1], BeforeValidator(_whole)]
Priority = Annotated[Whole, Field(ge=-(2**31), lt=2**31)]


class WireModel(BaseModel):
    """Part of a request body. JSON types are not converted ("1" is not 1), and NaN is refused.

    Unknown keys are kept: they reach the chat template, or an answer's header names them.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=()
    )
