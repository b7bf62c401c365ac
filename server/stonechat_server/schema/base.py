"""The base of everything a client sends."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""Name of a tool or of a schema."""


class WireModel(BaseModel):
    """Part of a request body: JSON types are taken as they are (no "1" for 1, no NaN).

    Unknown keys are kept, so that they can be named to the client, or reach the chat template.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=()
    )
