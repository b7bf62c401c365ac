"""The base class of all models of what a client sends."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
"""The name of a tool or of a schema."""
ListOf = Annotated[list[T], Field(fail_fast=True)]
"""A list that is checked up to its first wrong item: an error per item would take long."""


class WireModel(BaseModel):
    """Part of a request body. JSON types are not converted ("1" is not 1), and NaN is refused.

    Unknown keys are kept: they reach the chat template, or an answer's header names them.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=()
    )
