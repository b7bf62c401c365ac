"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, also under `/v1`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from fastapi import Request, Response

from stonechat_server.access.auth import check_model
from stonechat_server.api.openapi.document import answered, errors, json_body, request_body
from stonechat_server.api.router import Router, json_answer
from stonechat_server.api.shared.compute import compute
from stonechat_server.api.shared.on_demand import tokenizer_of
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import invalid
from stonechat_server.prompt.special_tokens import tokens_around
from stonechat_server.request.prepare import render
from stonechat_server.request.sampling_params import unknown_token
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call
from stonechat_server.serving.services import services_of
from stonechat_server.tokens_api.reading import DETOKENIZE, TOKENIZE
from stonechat_server.tokens_api.types import (
    MAX_TOKENS,
    AddedToken,
    DetokenizeAnswer,
    TokenizeAnswer,
    TokenizeChatRequest,
    TokenizerInfo,
    TokenizeTextRequest,
    TokenPiece,
)

if TYPE_CHECKING:
    from stonechat_models import Tokenizer

T = TypeVar("T")

router = Router(tags=["Tokens"])


@router.post(
    "/tokenize",
    operation_id="tokenize",
    responses=answered("TokenizeAnswer"),
    openapi_extra=request_body("TokenizeTextRequest", "TokenizeChatRequest"),
)
async def tokenize(http_request: Request) -> Response:
    """Split a text, or the prompt of a conversation, into tokens."""
    return await compute(http_request, TOKENIZE, _tokenize)


@router.post(
    "/detokenize",
    operation_id="detokenize",
    responses=answered("DetokenizeAnswer"),
    openapi_extra=request_body("DetokenizeRequest"),
)
async def detokenize(http_request: Request) -> Response:
    """Join tokens to a text."""
    return await compute(http_request, DETOKENIZE, _detokenize)


@router.get(
    "/tokenizer_info",
    operation_id="tokenizerInfo",
    responses={200: {"content": json_body("TokenizerInfo")}, **errors(401, 404, 429, 503)},
)
async def tokenizer_info(http_request: Request, model: str | None = None) -> Response:
    """Describe the tokenizer and the chat template of a model, or of the default one."""
    services = services_of(http_request)
    identity = services.authenticator.identify(http_request)
    served = services.sole
    if served is None or model is not None:
        name = check_model(model, services.models, identity)
        served = await tokenizer_of(http_request, services, name)
    return json_answer(_info(served))


def _tokenize(call: Call, model: ServedModel) -> TokenizeAnswer:
    tokenizer = model.engine.tokenizer
    wire: TokenizeTextRequest | TokenizeChatRequest = call.wire
    if isinstance(wire, TokenizeTextRequest):
        ids = _text_ids(wire, tokenizer)
    else:
        request = cast(ChatCompletionRequest, call.request)  # its documents are read
        ids = render(request, model.engine, model.templates, model.structure).token_ids
        if wire.add_special_tokens:
            ids = _with_special(ids, tokenizer)
    for name in ("with_pieces", "return_token_strs"):
        if getattr(wire, name):
            _check_number(len(ids), name, model)
    return TokenizeAnswer(
        count=len(ids),
        max_model_len=model.engine.model.max_model_len,
        tokens=_each(partial(_piece, tokenizer), ids) if wire.with_pieces else [*ids],
        token_strs=_each(tokenizer.token_string, ids) if wire.return_token_strs else None,
    )


def _text_ids(wire: TokenizeTextRequest, tokenizer: "Tokenizer") -> list[int]:
    adds_special = wire.add_special if wire.add_special_tokens is None else wire.add_special_tokens
    if adds_special is None:
        adds_special = wire.prompt is not None
    text = wire.prompt if wire.prompt is not None else wire.content or ""
    if wire.parse_special is not False:
        return tokenizer.encode(text, add_special_tokens=adds_special)
    ids = tokenizer.encode_parts([(text, True)])
    return _with_special(ids, tokenizer) if adds_special else ids


def _with_special(ids: list[int], tokenizer: "Tokenizer") -> list[int]:
    """Put around ids what the tokenizer puts around a text."""
    before, behind = tokens_around(tokenizer)
    return [*before, *ids, *behind]


def _each(describe: Callable[[int], T], ids: list[int]) -> list[T]:
    """Describe each id. Equal ids share a description, which saves memory in long texts."""
    described = {token_id: describe(token_id) for token_id in set(ids)}
    return [described[token_id] for token_id in ids]


def _piece(tokenizer: "Tokenizer", token_id: int) -> TokenPiece:
    data = tokenizer.token_bytes(token_id)
    try:
        return TokenPiece(token_id, data.decode())
    except UnicodeDecodeError:
        return TokenPiece(token_id, list(data))


def _detokenize(call: Call, model: ServedModel) -> DetokenizeAnswer:
    token_ids: list[int] = call.wire.tokens
    _check_number(len(token_ids), "tokens", model)
    _check_ids(token_ids, model)
    text = model.engine.tokenizer.decode(token_ids, skip_special_tokens=False)
    size, limit = len(text.encode()), model.settings.max_body_size
    if size > limit:
        raise invalid("tokens", f"The text has {size} bytes, and at most {limit} are allowed.")
    return DetokenizeAnswer(prompt=text, content=text)


def _check_number(num_tokens: int, param: str, model: ServedModel) -> None:
    """Raise `APIError` 400 if the texts of so many tokens would make too large an answer."""
    limit = max(MAX_TOKENS, model.engine.model.max_model_len)
    if num_tokens > limit:
        message = f"'{param}': there are {num_tokens} tokens, and at most {limit} get their texts."
        raise invalid(param, message)


def _check_ids(token_ids: Sequence[int], model: ServedModel) -> None:
    """Raise `APIError` 400 for an id that neither the tokenizer nor the model has."""
    num_ids = max(model.engine.tokenizer.vocab_size, model.engine.model.vocab_size)
    for position, token_id in enumerate(token_ids):
        if token_id >= num_ids:
            raise unknown_token(f"tokens[{position}]", token_id, num_ids)


def _info(model: ServedModel) -> TokenizerInfo:
    tokenizer, templates = model.engine.tokenizer, model.templates
    special_ids = frozenset(tokenizer.special_ids)
    others = {} if model.settings.chat_template else tokenizer.chat_templates
    return TokenizerInfo(
        tokenizer_class=tokenizer.tokenizer_class,
        vocab_size=tokenizer.vocab_size,
        max_model_len=model.engine.model.max_model_len,
        model_max_length=model.engine.model.max_model_len,
        chat_template=None if templates.is_plain else templates.default.source,
        chat_templates={name: text for name, text in others.items() if name != "default"},
        added_tokens_decoder={
            str(token_id): AddedToken(tokenizer.token_string(token_id), token_id in special_ids)
            for token_id in sorted(tokenizer.added_token_ids)
        },
        **tokenizer.special_tokens,
    )
