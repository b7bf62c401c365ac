"""The bodies of `POST /v1/rerank` and `POST /v1/score`.

Types and ranges are checked here. `fields.py` says what each field does.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.sampling_fields import MinusOne, Priority, Whole

MAX_DOCUMENTS = 2048
"""Documents of one request."""
Count = Annotated[Whole, Field(ge=1, lt=2**31)]


class Document(BaseModel):
    """A document as an object. What else it has comes back with it, so no key is unknown."""

    model_config = WireModel.model_config

    text: str


def _kind(value: object) -> str:
    """Which member of a union a value is to be checked as, so that an error names what is wrong."""
    return "an object" if isinstance(value, dict) else "a text"


def _kinds(value: object) -> str:
    return "a list of texts" if isinstance(value, list) else "a text"


TextOrDocument = Annotated[
    Annotated[str, Tag("a text")] | Annotated[Document, Tag("an object")], Discriminator(_kind)
]
Texts = Annotated[ListOf[str], Field(min_length=1, max_length=MAX_DOCUMENTS)]
TextOrTexts = Annotated[
    Annotated[str, Tag("a text")] | Annotated[Texts, Tag("a list of texts")],
    Discriminator(_kinds),
]


class PairFields(WireModel):
    """What both endpoints take beside their texts."""

    model: str | None = None
    truncation: bool | None = None
    truncate: bool | None = None
    max_tokens_per_doc: Count | None = None
    max_tokens_per_query: Count | None = None
    truncate_prompt_tokens: Count | MinusOne | None = None
    use_activation: bool | None = None
    raw_scores: bool | None = None
    user: str | None = None
    priority: Priority | None = None
    cache_salt: str | None = None

    instruction: str | None = None
    instruct: str | None = None

    # Fields of other servers that ask for what these endpoints have not.
    mm_processor_kwargs: Any = None


class RerankRequest(PairFields):
    """A question, and the documents to put in order."""

    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[ListOf[TextOrDocument], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[Whole, Field(ge=0, lt=2**31)] | None = None
    return_documents: bool | None = None

    max_chunks_per_doc: Any = None
    rank_fields: Any = None


class ScoreRequest(PairFields):
    """One text with one or many others, or two lists of equal length."""

    text_1: TextOrTexts
    text_2: TextOrTexts
