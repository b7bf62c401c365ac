"""Translates requests: to chat requests, or to text completions. Checks first what is refused."""

import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stonechat_models import ModelInfo
from stonechat_server.errors import invalid
from stonechat_server.media.data_urls import is_data_url
from stonechat_server.media.errors import too_many
from stonechat_server.media.file_types import audio_format
from stonechat_server.media.references import shortened_data
from stonechat_server.messages_api.marks import to_arguments
from stonechat_server.ollama_api.fields import DEFAULTS, FIELDS, OPTIONS
from stonechat_server.ollama_api.request import (
    Message,
    OllamaChat,
    OllamaGenerate,
    OllamaRequest,
    TextRequest,
)
from stonechat_server.request.field_checks import asked_for, ignored_params
from stonechat_server.request.other_names import with_own_names
from stonechat_server.schema import messages as chat
from stonechat_server.schema.fields import FieldStatus
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.settings import Settings

R = TypeVar("R", bound=SamplingFields)

SAME_NAMES = (
    *("temperature", "top_k", "top_p", "min_p", "frequency_penalty", "presence_penalty"),
    *("num_predict", "repeat_penalty"),
)
"""Options whose names chat requests and text completions know too."""
NAMES = [
    *((name, f"options.{name}") for name in (*SAME_NAMES, "seed", "stop")),
    *((name, "options.num_predict") for name in ("max_tokens", "max_completion_tokens")),
    ("repetition_penalty", "options.repeat_penalty"),
]
"""Pairs of paths: of a value in the chat request, and of the same value in the client's body."""
NO_LIMIT = -1
HEAD = 16
"""Characters of base64 that show what a file is."""


def check_number_of_images(wire: TextRequest, settings: Settings) -> None:
    """Raise `APIError` 400 for more images than may be images or audio, before they are read."""
    messages = (wire.messages or ()) if isinstance(wire, OllamaChat) else ()
    lists = [message.images for message in messages]
    if isinstance(wire, OllamaGenerate):
        lists.append(wire.images)
    number, limit = sum(len(images or ()) for images in lists), settings.max_images
    if number > limit + settings.max_audio_clips:
        raise too_many(number, limit, "image")


def ignored(wire: OllamaRequest) -> list[str]:
    """Paths of what is set but changes nothing."""
    paths = ignored_params(wire, FIELDS)
    if isinstance(wire, OllamaGenerate) and is_raw(wire) and wire.think is not None:
        paths.append("think")
    if wire.options is None:
        return paths
    if not isinstance(wire, TextRequest):
        return [*paths, "options"]
    options = asked_for(wire.options, OPTIONS, FieldStatus.NO_EFFECT)
    return [*paths, *(f"options.{name}" for name in options)]


def to_chat(wire: OllamaChat, messages: "MessageReader") -> ChatCompletionRequest:
    """Translate a request to `/api/chat`. Raises `APIError` 400."""
    values = _shared(wire)
    values |= {"messages": messages.read(wire.messages or ()), "think": wire.think}
    if wire.tools:
        values["tools"] = wire.tools
    last = values["messages"][-1]
    if isinstance(last, chat.AssistantMessage) and last.content and not last.tool_calls:
        values |= {"continue_final_message": True, "add_generation_prompt": False}
    return _built(ChatCompletionRequest, values)


def prompt_to_chat(wire: OllamaGenerate, messages: "MessageReader") -> ChatCompletionRequest:
    """Translate a request to `/api/generate`: its prompt is a message of the user."""
    prompt = Message(role="user", content=wire.prompt, images=wire.images)
    given = [prompt] if not wire.system else [Message(role="system", content=wire.system), prompt]
    values = _shared(wire) | {"messages": messages.read(given), "think": wire.think}
    wire.images = prompt.images  # without the data
    return _built(ChatCompletionRequest, values)


def is_raw(wire: OllamaGenerate) -> bool:
    """Whether the prompt is a text to continue. Raises `APIError` 400 for what it cannot have."""
    cause = "raw" if wire.raw else "suffix" if wire.suffix else None
    if cause is not None:
        for name in ("system", "images"):
            if getattr(wire, name):
                raise invalid(name, f"'{name}' and '{cause}' cannot both be given.")
    return cause is not None


def to_completion(wire: OllamaGenerate, kind: type[R]) -> R:
    """Translate a raw prompt to a text completion, which is of the given type."""
    values = _shared(wire) | {"prompt": wire.prompt, "suffix": wire.suffix}
    values.setdefault("num_predict", NO_LIMIT)
    if "logprobs" in values:
        values["logprobs"] = values.pop("top_logprobs")
    return _built(kind, values)


def with_defaults(request: R, model: ModelInfo) -> R:
    """The request with Ollama's sampling, where neither it nor the model's makers name one."""
    missing = {
        name: value
        for name, value in DEFAULTS.items()
        if getattr(request, name) is None and getattr(model.sampling_defaults, name) is None
    }
    return request.model_copy(update=missing)


def _shared(wire: TextRequest) -> dict[str, Any]:
    """What chat requests and text completions have in common."""
    values: dict[str, Any] = {"stream": wire.stream is not False, "format": wire.format or None}
    if wire.top_logprobs and not wire.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
    if wire.logprobs:
        values |= {"logprobs": True, "top_logprobs": wire.top_logprobs or 0}
    if wire.options is not None:
        options = wire.options
        values |= {name: getattr(options, name) for name in SAME_NAMES}
        values |= {"stop": options.stop or None}
        values |= {"seed": None if options.seed == -1 else options.seed}
        if (options.num_predict or 0) < 1:
            del values["num_predict"]
    return values


def _built(kind: type[R], values: dict[str, Any]) -> R:
    given = {name: value for name, value in values.items() if value is not None}
    return with_own_names(kind.model_construct(**given))


@dataclass(slots=True)
class MessageReader:
    """Translates messages, and notes in `image_paths` where each image stands in the body."""

    where: str
    """The path of the images of message i, with `{i}`."""
    image_paths: list[tuple[str, str]] = field(default_factory=list)
    """The paths of images in the chat request, each with that in the body."""
    _names: dict[str, str] = field(default_factory=dict)
    """The names of the latest message's calls, by id."""
    _ids: dict[str | None, Iterator[str]] = field(default_factory=dict)
    """The ids of these calls in their order, by name, and of all of them under None."""
    _answered: set[str] = field(default_factory=set)
    """The ids of these calls that have a result."""
    _num_calls: int = 0

    def read(self, messages: Sequence[Message]) -> list[chat.Message]:
        """Translate a conversation. Little of the data of its images is left in the messages."""
        return [self._read(message, i) for i, message in enumerate(messages)]

    def _read(self, message: Message, i: int) -> chat.Message:
        content: Any = message.content or ""
        images = list(self._images(message, i))
        if images:
            text = [chat.TextPart(type="text", text=content)] if content else []
            content = [*images, *text]
        match message.role:
            case "system":
                return chat.SystemMessage.model_construct(role="system", content=content)
            case "user":
                return chat.UserMessage.model_construct(role="user", content=content)
            case "assistant":
                return self._answer(message, content)
            case "tool":
                id, name = self._result_of(message)
                return chat.ToolMessage.model_construct(
                    role="tool", content=content, tool_call_id=id, name=name or None
                )

    def _answer(self, message: Message, content: Any) -> chat.Message:
        values: dict[str, Any] = {"role": "assistant", "content": content}
        if message.thinking:
            values["reasoning_content"] = message.thinking
        calls = []
        for call in message.tool_calls or ():
            self._num_calls += 1
            id, name = call.id or f"call_{self._num_calls}", call.function.name
            arguments = to_arguments(call.function.arguments or {})
            function = chat.FunctionCall(name=name, arguments=arguments)
            calls.append(chat.FunctionToolCall(id=id, type="function", function=function))
        self._open(calls)
        if calls:
            values |= {"tool_calls": calls, "content": content or None}
        return chat.AssistantMessage.model_construct(**values)

    def _open(self, calls: Sequence[chat.FunctionToolCall]) -> None:
        """Expect results of these calls, and of no others."""
        ids: dict[str | None, list[str]] = {None: []}
        for call in calls:
            ids[None].append(call.id)
            ids.setdefault(call.function.name, []).append(call.id)
        self._names, self._answered = {call.id: call.function.name for call in calls}, set()
        self._ids = {name: iter(same) for name, same in ids.items()}

    def _result_of(self, message: Message) -> tuple[str, str]:
        """The id and the name of the call whose result a message is. Clients may name either, or
        neither: then results come in the order of the calls."""
        id = message.tool_call_id or ""
        if id not in self._names:
            ids = self._ids.get(message.tool_name or None, ())
            id = next((other for other in ids if other not in self._answered), id)
        self._answered.add(id)
        return id, self._names.get(id, message.tool_name or "")

    def _images(self, message: Message, i: int) -> Iterator[chat.SourcePart]:
        for j, data in enumerate(message.images or ()):
            own_path = f"{self.where.format(i=i)}[{j}]"
            self.image_paths.append((f"messages[{i}].content[{j}]", own_path))
            yield _part(data)
        if message.images:
            message.images = [shortened_data(data) for data in message.images]


def _part(data: str) -> chat.SourcePart:
    """An image as a part of a chat message, or audio, which clients send as an image too."""
    start = data.find(",") + 1 if is_data_url(data) else 0
    try:
        head = binascii.a2b_base64(data[start : start + HEAD])
    except ValueError:  # the part's own error says so
        head = b""
    if found := audio_format(head):
        content = chat.AudioData(data=data, format=found)
        return chat.AudioPart(type="input_audio", input_audio=content)
    url = data if is_data_url(data) else f"data:;base64,{data}"
    return chat.ImagePart(type="image_url", image_url=chat.ImageUrl(url=url))
