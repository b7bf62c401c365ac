"""What an endpoint that generates must say: how it reads a body, and how it writes the answer."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from starlette.requests import Request as HTTPRequest

from stonechat_models import ModelInfo
from stonechat_server.access.auth import Identity
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError, other_use
from stonechat_server.media.references import MediaReference
from stonechat_server.request.body import parse_request
from stonechat_server.request.field_checks import ignored_params, refuse_rejected
from stonechat_server.request.prepare import PreparedRequest, prepare, render
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.fields import FORM_FIELDS, FieldNote
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.serving.lifecycle import Deadline
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import AnswerWriter, Collector, CompletionHead

MAX_RENAMED_CHARACTERS = 2_000
"""Longer messages keep the names that they have."""
SHARED_FIELDS = frozenset({"model", "user", "priority", "cache_salt"})
"""Fields of a `VectorEndpoint` that mean what they mean in a request for text."""


@dataclass(slots=True, kw_only=True)
class Call:
    """What an endpoint makes of one body."""

    request: SamplingFields
    """A chat request, except for text completions."""
    wire: Any
    """The request as the client sent it, of the endpoint's `wire_type`."""
    ignored: Sequence[str] = ()
    """Paths of what the client set and what has no effect."""
    names: Sequence[tuple[str, str]] = ()
    """Paths in `request`, and the paths of the same values in the client's body."""
    media: Sequence[MediaReference] = ()
    """The images and audio of `request`, which must be loaded before it is prepared."""
    prepared: Sequence[PreparedRequest] = ()
    """What the engine gets, once it is made: one for each prompt, alike but for the token limit."""
    num_extra_bytes: int = 0
    """The size of what the request has beside its body: the items that it refers to."""
    at_end: Callable[[], None] | None = None
    """Called when the request has ended, however that was."""

    def own_name(self, path: str) -> str:
        """The client's path of a value that has this path in `request`."""
        best = max(
            [pair for pair in self.names if _is_within(path, pair[0])],
            key=lambda pair: len(pair[0]),
            default=("", ""),
        )
        return best[1] + path[len(best[0]) :]

    def named(self, error: APIError) -> APIError:
        """The error with the client's names in its `param` and its message."""
        if not self.names:
            return error
        texts = {old: new for old, new in self.names if old.isidentifier() and "_" in old}
        if error.param is not None:
            param = self.own_name(error.param)
            texts[error.param], error.param = param, param
        if len(error.message) <= MAX_RENAMED_CHARACTERS:
            error.message = _replaced(error.message, texts)
        return error


@dataclass(slots=True, kw_only=True)
class Received:
    """A request that has come: who sent it, to which endpoint, and what it asks for."""

    http_request: HTTPRequest
    services: Services
    identity: Identity
    endpoint: "Endpoint"
    call: Call
    num_bytes: int
    """The size of what the call was read from, media aside."""
    started: float | None = None
    """When it came, in `time.monotonic()` seconds, if it waited for its model or its media."""
    deadline: Deadline | None = None
    """Set once its media are being loaded: it runs from then on."""


class Endpoint(ABC):
    """One endpoint. It holds no state of a request."""

    path: str
    """The ledger, the metrics and the logs name the endpoint by it."""
    id_prefix: str
    """What the ids of its answers begin with."""
    prompt_fields: frozenset[str]
    """The fields of the body that the ledger keeps if it keeps texts."""
    takes_media = False
    """Whether its requests may have images or audio, so that their bodies may be larger."""
    takes_form = False
    """Whether its requests are forms with a file, and not JSON."""
    generates = True
    """Whether it needs a model that generates text."""
    streams_lines = False
    """Whether a stream is lines of JSON. They have no comments, unlike server-sent events."""

    wire_type: type[WireModel]
    """The type of its requests, which has the field `model`."""

    def parse(self, body: bytes) -> WireModel:
        """Parse a body. Raises `APIError` 400."""
        return parse_request(body, self.wire_type)

    def parse_form(self, body: bytes, content_type: str) -> WireModel:
        """Parse a form, if the endpoint takes one. Raises `APIError` 400."""
        raise NotImplementedError

    @abstractmethod
    def read(self, wire: Any, services: Services, identity: Identity) -> Call:
        """Check a parsed body, and translate it. Raises `APIError` 400."""

    def check_model(self, call: Call, info: ModelInfo) -> None:
        """Raise `APIError` 400 for what the model does not do, before any media are loaded."""
        if self.generates and not info.generates:
            raise other_use(info, "does not generate", "model_not_generative")

    def takes_long(self, call: Call) -> bool:
        """Whether to prepare even a small body in a thread.

        A request may have a template, or schemas or grammars to check.
        """
        request = call.request
        if isinstance(request, ChatCompletionRequest) and (request.tools or request.chat_template):
            return True
        is_structured = request.response_format or request.structured_outputs
        return bool(is_structured) or not FORM_FIELDS.isdisjoint(request.model_fields_set)

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        """Prepare each prompt of the request. Only computes, and may run in any thread.

        Raises `APIError` 400, or an engine error that `errors.py` knows.
        """
        request = cast(ChatCompletionRequest, call.request)  # others have their own method
        prompt = render(request, model.engine, model.templates, model.structure)
        return [prepare(request, prompt, model.engine, model.settings.max_completion_total)]

    @abstractmethod
    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> AnswerWriter:
        """The writer of one answer."""

    def encode_early_error(self, error: APIError, request_id: str) -> bytes:
        """Encode an error that ends a stream which has had nothing but comments."""
        return b"data: %b\n\n" % msgspec.json.encode(error.body())

    @abstractmethod
    def collector(self, call: Call, head: CompletionHead) -> Collector:
        """The collector of one answer."""


class VectorEndpoint(Endpoint):
    """An endpoint that makes no text, but a vector or a score of each prompt."""

    fields: Mapping[str, FieldNote]
    """What each field of a request does."""
    generates = False

    def read(self, wire: Any, services: Services, identity: Identity) -> Call:
        refuse_rejected(wire, self.fields)
        given = {name: getattr(wire, name) for name in SHARED_FIELDS & wire.model_fields_set}
        request = SamplingFields(max_tokens=None, **given)
        return Call(request=request, wire=wire, ignored=ignored_params(wire, self.fields))


def _is_within(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", ".", "[")


def _replaced(text: str, names: dict[str, str]) -> str:
    """Replace whole names in a text. A plain word, such as `messages`, is a name only in quotes."""
    names = {old: new for old, new in names.items() if old and old != new}
    if not names:
        return text
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join(
        f"(?<='){name}(?=')" if name.isalpha() else re.escape(name) for name in longest_first
    )
    found = re.compile(rf"(?<![\w.])(?:{pattern})(?!\w)")
    return found.sub(lambda match: names[match[0]], text)


def prompt_text(call: Call, fields: frozenset[str]) -> str:
    """The fields of a body as JSON, for the ledger."""
    dumped: Any = call.wire.model_dump_json(include=set(fields), exclude_unset=True)
    return str(dumped)
