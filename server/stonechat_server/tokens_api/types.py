"""The bodies and answers of the endpoints for tokens and prompts. Names are vLLM's.

llama.cpp's names of the same things are taken and sent too.
"""

from typing import Annotated

import msgspec
from pydantic import Field

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.requests import ChatCompletionRequest

MAX_TOKEN_ID = 2**63 - 1
MAX_TOKENS = 2**18
"""For at most so many tokens, or for a whole context, an answer has the texts of tokens."""


class TokenizeTextRequest(WireModel):
    """A text to split into tokens: `prompt`, or `content` in llama.cpp's way."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class TokenizeChatRequest(ChatCompletionRequest):
    """A conversation whose prompt is to be split into tokens."""

    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(WireModel):
    """Token ids to join to a text."""

    model: str | None = None
    tokens: ListOf[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]]


class TokenPiece(msgspec.Struct):
    """A token and its text. The text of a token that is not whole characters is its bytes."""

    id: int
    piece: str | list[int]


class TokenizeAnswer(msgspec.Struct, kw_only=True):
    """The tokens of a text: ids, or ids with their texts if `with_pieces` is set."""

    count: int
    max_model_len: int
    tokens: list[int | TokenPiece]
    token_strs: list[str] | None
    """The tokens as the vocabulary spells them. None unless they are asked for."""


class DetokenizeAnswer(msgspec.Struct):
    """A text, under the name that clients of vLLM read and under the one of llama.cpp's clients."""

    prompt: str
    content: str


class AddedToken(msgspec.Struct):
    """A token that is found in a text wherever it stands. Decoders leave out special ones."""

    content: str
    special: bool


class TokenizerInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The tokenizer of the served model, much as its `tokenizer_config.json` describes it."""

    tokenizer_class: str
    vocab_size: int
    max_model_len: int
    model_max_length: int
    chat_template: str | None
    chat_templates: dict[str, str]
    """Other templates of the model by name, such as `tool_use`."""
    added_tokens_decoder: dict[str, AddedToken]
    """The added tokens by id."""
    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    sep_token: str | None = None
    pad_token: str | None = None
    cls_token: str | None = None
    mask_token: str | None = None


class RenderedSampling(msgspec.Struct, kw_only=True):
    """How the answer's tokens would be chosen, with the defaults of the model filled in."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    logit_bias: dict[str, float]
    logprobs: int | None
    prompt_logprobs: int | None
    max_tokens: int | None
    min_tokens: int
    stop: list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    ignore_eos: bool
    thinking_budget: int | None
    grammar: str | None
    """The kind of grammar that the answer must follow."""


class RenderedChat(msgspec.Struct, kw_only=True):
    """What the engine gets for a chat request."""

    request_id: str
    model: str
    prompt: str
    """The text. Its special tokens stand in it as text."""
    token_ids: list[int]
    max_model_len: int
    sampling_params: RenderedSampling
    stream: bool
    priority: int
    cache_salt: str | None


class Version(msgspec.Struct):
    """The version of the server."""

    version: str
