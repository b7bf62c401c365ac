"""The body of `POST /v1/embeddings`.

Types and ranges are checked here. `fields.py` says what each field does.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.inputs import BY_KIND, Inputs, TokenIds, inputs_of
from stonechat_server.schema.sampling_fields import MinusOne, Priority, Whole

MAX_INPUTS = 2048
"""Texts of one request, as in the published API."""

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[ListOf[Text], Field(min_length=1, max_length=MAX_INPUTS)]
TokenIdLists = Annotated[ListOf[TokenIds], Field(max_length=MAX_INPUTS)]
Input = Annotated[
    Annotated[Text, Tag("a text")]
    | Annotated[Texts, Tag("a list of texts")]
    | Annotated[TokenIds, Tag("a list of ids")]
    | Annotated[TokenIdLists, Tag("lists of ids")],
    BY_KIND,
]


class EmbeddingRequest(WireModel):
    """One or more texts to embed, and the options for doing so."""

    model: str | None = None
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None
    user: str | None = None

    input_type: (
        Literal["query", "document", "passage", "search_query", "search_document"] | None
    ) = None
    prompt_name: str | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: Annotated[Whole, Field(ge=1, lt=2**31)] | MinusOne | None = None
    add_special_tokens: bool | None = None
    priority: Priority | None = None
    cache_salt: str | None = None

    # Fields of other embedding endpoints that ask for what this one has not.
    messages: Any = None
    instruction: Any = None

    @property
    def inputs(self) -> Inputs:
        """Each input, with its path in the body."""
        return inputs_of("input", self.input)
