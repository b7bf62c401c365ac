"""The one place where an exception becomes an OpenAI-style error answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import msgspec
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from stonechat_models import (
    GRAMMAR_FAILED,
    EngineDeadError,
    GrammarError,
    InvalidParamsError,
    ModelInfo,
    ModelUse,
    PromptTooLongError,
)
from stonechat_server.schema.errors import ErrorBody, ErrorResponse

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

INVALID_REQUEST = "invalid_request_error"
MISSING = "missing_required_parameter"

MAX_PROBLEMS = 100
"""At most this many validation problems of a body are examined."""
USES: Mapping[ModelUse, tuple[str, str]] = {
    "generation": ("generates text", "/v1/chat/completions"),
    "embeddings": ("makes embeddings", "/v1/embeddings"),
    "reranking": ("scores documents", "/v1/rerank"),
    "transcription": ("transcribes speech", "/v1/audio/transcriptions"),
}
"""What a model does, and the endpoint for it."""
ENGINE_RETRY_AFTER = "5"
"""Seconds after which a crashed engine process may be running again."""


class APIError(Exception):
    """An error answer: the HTTP status and the fields of the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> ErrorResponse:
        """The error object that is sent as JSON."""
        return ErrorResponse(
            ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)
        )

    def response(self, body: object = None) -> Response:
        """The whole HTTP answer. `body` replaces the error object."""
        content = msgspec.json.encode(self.body() if body is None else body)
        return Response(content, self.status, self.headers, media_type="application/json")


ErrorAnswer = Callable[[APIError, Scope], Response]
"""Makes the answer to an error of a request, in the form of the request's endpoint."""


def invalid(param: str | None, message: str, code: str | None = "invalid_value") -> APIError:
    """A 400 for an invalid value of the parameter `param`."""
    return APIError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> APIError:
    """A 400 for a field, or a value of a field, that this server does not support."""
    return APIError(400, message, param=param, code="unsupported_parameter")


def context_length_exceeded(error: PromptTooLongError) -> APIError:
    """A 400 that states the context length and the length of the prompt."""
    return APIError(
        400,
        f"This model's maximum context length is {error.max_model_len} tokens, and at least one "
        f"is needed for the answer. The prompt has {error.num_prompt_tokens}.",
        param="messages",
        code="context_length_exceeded",
    )


def other_use(model: ModelInfo, refusal: str, code: str) -> APIError:
    """A 400 for a request for what the model does not do. It says what the model does."""
    does, path = USES[model.use]
    message = f"This model {does}; it {refusal}. Use POST {path}."
    return APIError(400, message, param="model", code=code)


def server_error() -> APIError:
    """A 500 that reveals nothing about the cause. The cause is in the log."""
    return APIError(
        500, "The server failed to process the request.", type="server_error", code="server_error"
    )


def engine_failure(reason: str) -> APIError:
    """The error for a failed output: 400 if its grammar proved too complex, otherwise 500."""
    if not reason.startswith(GRAMMAR_FAILED):
        return server_error()
    return APIError(400, reason[0].upper() + reason[1:], code="invalid_grammar")


def to_api_error(error: BaseException) -> APIError | None:
    """The error answer for a known exception.

    None means that the exception is unexpected: the caller logs it and answers 500.
    """
    match error:
        case APIError():
            return error
        case PromptTooLongError():
            return context_length_exceeded(error)
        case InvalidParamsError():
            return invalid(error.param, str(error))
        case GrammarError():
            return APIError(400, str(error), code="invalid_grammar")
        case EngineDeadError():
            return APIError(
                503,
                "The engine is not running.",
                type="server_error",
                code="engine_dead",
                headers={"Retry-After": ENGINE_RETRY_AFTER},
            )
        case HTTPException():
            return _from_http_exception(error)
    return None


def _from_http_exception(error: HTTPException) -> APIError:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    message = {404: "Unknown URL.", 405: "Method not allowed for this URL."}.get(
        error.status_code, str(error.detail)
    )
    return APIError(error.status_code, message, code=code, headers=error.headers)


def from_validation_error(error: ValidationError, body: bytes) -> APIError:
    """A 400 for the first problem that pydantic reports, with its path as `messages[0].role`.

    For a union, pydantic reports a problem per member. The one deepest in the body is chosen, and
    there one of a member of the right type, because the value fits that member best.
    """
    details = error.errors(include_url=False)[:MAX_PROBLEMS]
    if details[0]["type"] == "json_invalid":
        return APIError(400, "The body is not valid JSON in UTF-8.", code="invalid_json")
    decoded: object = msgspec.json.decode(body)
    first_field = details[0]["loc"][:1]
    candidates = [detail for detail in details if detail["loc"][:1] == first_field]
    paths = [_path_in_body(detail, decoded) for detail in candidates]
    has_type = [_has_type(detail) for detail in candidates]
    best = max(range(len(candidates)), key=lambda i: (len(paths[i]), has_type[i], -i))
    problem = candidates[best]
    if _is_key(paths[best]) and _value_at(decoded, paths[best]) is None:
        problem["type"] = "missing"  # null is the same as leaving the field out
    return APIError(
        400,
        _message(problem, paths[best]),
        param=format_path(paths[best]) or None,
        code=_code(problem["type"]),
    )


def _has_type(detail: "ErrorDetails") -> bool:
    """Whether the value has the type that this member of a union takes."""
    if detail["type"] == "literal_error":
        is_text = detail["ctx"]["expected"].startswith("'")
        return isinstance(detail["input"], str if is_text else int)
    return not detail["type"].endswith("_type")


def _is_key(path: Sequence[str | int]) -> bool:
    """Whether a path ends at a key of an object, not at an item of a list or at the body."""
    return bool(path) and isinstance(path[-1], str)


def _code(kind: str) -> str:
    if kind in ("missing", "union_tag_not_found"):
        return MISSING
    return "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"


def _message(detail: "ErrorDetails", path: Sequence[str | int]) -> str:
    where = f"'{format_path(path)}'" if path else "body"
    if _code(detail["type"]) == MISSING:
        return f"Missing required parameter: {where}."
    return f"Invalid {where}: {_in_words(detail)}."


def _in_words(detail: "ErrorDetails") -> str:
    """What pydantic says, without its own terms."""
    if detail["type"] == "union_tag_invalid":
        *tags, last = detail["ctx"]["expected_tags"].split(", ")
        return f"Input should be {', '.join(tags)} or {last}"
    return detail["msg"].replace(" after validation", "")


def _path_in_body(detail: "ErrorDetails", body: object) -> list[str | int]:
    """The path to the problem, without the names of union members that pydantic adds to it.

    The name of a member (`function`) may also be a key. The value at the path tells which it is.
    """
    path = _keys(detail["loc"], body)
    if _value_at(body, path) != detail["input"]:
        without_tags = _keys(detail["loc"], body, skips_tags=True)
        if _value_at(body, without_tags) == detail["input"]:
            path = without_tags
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    elif detail["type"].startswith("union_tag_"):
        path.append(str(detail["ctx"]["discriminator"]).strip("'"))
    return path


def _keys(loc: Sequence[str | int], body: object, *, skips_tags: bool = False) -> list[str | int]:
    """The parts of `loc` that are keys in the body. An object's tag is no key, if it is skipped."""
    path: list[str | int] = []
    value, tagged = body, None
    for part in loc:
        if skips_tags and value is not tagged and _is_tag(value, part):
            tagged = value
        elif _has(value, part):
            value = value[part]  # type: ignore[index]
            path.append(part)
    return path


def _is_tag(value: object, part: str | int) -> bool:
    return isinstance(value, dict) and part in (value.get("type"), value.get("role"))


def _value_at(body: object, path: Sequence[str | int]) -> object:
    """The value at `path`; None if there is none."""
    for part in path:
        body = body[part] if _has(body, part) else None  # type: ignore[index]
    return body


def _has(value: object, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def format_path(path: Sequence[str | int]) -> str:
    """Write `["messages", 0, "role"]` as `messages[0].role`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def unwrap(error: BaseException) -> BaseException:
    """Take an exception out of exception groups that hold nothing else (task groups make them)."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = cast(BaseException, error.exceptions[0])
    return error
