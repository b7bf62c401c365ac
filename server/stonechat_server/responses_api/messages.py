"""Translates the items of a request to chat messages.

What the model wrote between two inputs is several items here and one message there: its reasoning,
its text and its calls.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stonechat_server.errors import invalid, unsupported
from stonechat_server.media.references import shortened, shortened_data
from stonechat_server.responses_api import items
from stonechat_server.responses_api.history import PREVIOUS
from stonechat_server.responses_api.items import Content, Item
from stonechat_server.responses_api.marks import decode_reasoning
from stonechat_server.responses_api.tools import joined_name
from stonechat_server.schema import messages as chat


@dataclass(slots=True)
class Conversation:
    """Chat messages, and the paths in the client's body that they come from."""

    messages: list[chat.Message] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Paths of reasoning that cannot be read, and of calls that another service ran."""

    def add(self, message: chat.Message, path: str) -> None:
        """Append a message that comes from `path`."""
        self.names.append((f"messages[{len(self.messages)}]", path))
        self.messages.append(message)

    def add_text(self, message: chat.Message, path: str) -> None:
        """Append a message whose content is the whole value of `path`."""
        self.names.append((f"messages[{len(self.messages)}].content", path))
        self.add(message, path)


MEDIA = (items.InputImage, items.InputAudio, items.InputFile)


def to_messages(
    instructions: str | None, history: Sequence[Item], given: str | Sequence[Item]
) -> Conversation:
    """Translate a request's instructions, the conversation that it continues, and its input.

    Raises `APIError` 400 for parts and items that are not supported, and if nothing is left.
    """
    conversation = Conversation()
    if instructions:
        message = chat.SystemMessage(role="system", content=instructions)
        conversation.add_text(message, "instructions")
    added = () if isinstance(given, str) else given
    paths = [PREVIOUS] * len(history) + [f"input[{i}]" for i in range(len(added))]
    _add_items(conversation, paths, [*history, *added])
    if isinstance(given, str):
        conversation.add_text(chat.UserMessage(role="user", content=given), "input")
    if not conversation.messages:
        raise invalid(
            "input",
            "'input' has no message. Tools, reasoning that cannot be read here, and calls that "
            "another service ran do not count.",
        )
    return conversation


def _add_items(conversation: Conversation, paths: Sequence[str], given: Sequence[Item]) -> None:
    answer: _Answer | None = None
    for path, item in zip(paths, given, strict=True):
        if isinstance(item, items.AdditionalTools):
            continue
        if isinstance(item, items.HostedItem):
            if path != PREVIOUS:
                conversation.ignored.append(path)
            continue
        if _is_from_model(item):
            if answer is None or not answer.takes(item):
                _add_answer(conversation, answer)
                answer = _Answer(path)
            answer.add(item, path)
            conversation.ignored += _unreadable(item, path)
        else:
            _add_answer(conversation, answer)
            answer = None
            if isinstance(item, items.CallOutput):
                number = len(conversation.messages)
                conversation.names.append((f"messages[{number}].content", f"{path}.output"))
            conversation.add(_to_message(item, path), path)
    _add_answer(conversation, answer)


def _is_from_model(item: Item) -> bool:
    if isinstance(item, items.Message):
        return item.role == "assistant"
    calls = items.FunctionCall | items.CustomToolCall | items.ShellCall
    return isinstance(item, items.Reasoning | calls)


def _add_answer(conversation: Conversation, answer: "_Answer | None") -> None:
    if answer is not None and not answer.is_empty:
        conversation.add(answer.message(), answer.path)


@dataclass(slots=True)
class _Answer:
    """Neighbouring items that the model wrote."""

    path: str
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[chat.ToolCall] = field(default_factory=list)
    ends_with_message: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but reasoning that cannot be read."""
        return not (self.texts or self.calls or any(self.reasoning))

    def takes(self, item: Item) -> bool:
        """False for a message right behind another one: it is the next answer."""
        return not (self.ends_with_message and isinstance(item, items.Message))

    def add(self, item: Item, path: str) -> None:
        self.ends_with_message = isinstance(item, items.Message)
        match item:
            case items.Message():
                self.texts.append(_text(item.content, f"{path}.content"))
            case items.Reasoning():
                self.reasoning.append(reasoning_text(item))
            case items.FunctionCall():
                function = chat.FunctionCall(
                    name=joined_name(item.namespace, item.name), arguments=item.arguments
                )
                self.calls.append(
                    chat.FunctionToolCall(id=item.call_id, type="function", function=function)
                )
            case items.CustomToolCall():
                custom = chat.CustomCall(
                    name=joined_name(item.namespace, item.name), input=item.input
                )
                self.calls.append(
                    chat.CustomToolCall(id=item.call_id, type="custom", custom=custom)
                )
            case items.ShellCall():
                function = chat.FunctionCall(
                    name=item.type.removesuffix("_call"),
                    arguments=json.dumps(item.action or item.operation or {}),
                )
                self.calls.append(
                    chat.FunctionToolCall(id=call_id(item), type="function", function=function)
                )

    def message(self) -> chat.AssistantMessage:
        text, reasoning = "".join(self.texts), "".join(self.reasoning)
        extra: dict[str, Any] = {"reasoning_content": reasoning} if reasoning else {}
        return chat.AssistantMessage(
            role="assistant",
            content=None if not text and self.calls else text,
            tool_calls=self.calls or None,
            **extra,
        )


def call_id(item: items.ShellCall | items.ShellOutput) -> str:
    """The id of a call, which older services give as that of the item."""
    return item.call_id or item.id or ""


def reasoning_text(item: items.Reasoning) -> str:
    """The reasoning that an item holds: what this server encoded, else content, else summary."""
    decoded = decode_reasoning(item.encrypted_content or "")
    if decoded is not None:
        return decoded
    parts: Sequence[items.ReasoningText | items.SummaryText] = item.content or item.summary or ()
    return "\n".join(part.text for part in parts)


def _unreadable(item: Item, path: str) -> list[str]:
    """The path of encrypted reasoning that another server made, if the item has no text.

    For the items of earlier requests, those have told it.
    """
    if not isinstance(item, items.Reasoning) or path == PREVIOUS or reasoning_text(item):
        return []
    return [f"{path}.encrypted_content"] if item.encrypted_content else []


def _to_message(item: Item, path: str) -> chat.Message:
    match item:
        case items.CallOutput():
            message = chat.ToolMessage(
                role="tool",
                content=_content(item.output, f"{path}.output"),
                tool_call_id=item.call_id,
            )
            if item.name:
                message.name = joined_name(item.namespace, item.name)
            return message
        case items.ShellOutput():
            output = item.output if isinstance(item.output, str) else json.dumps(item.output)
            return chat.ToolMessage(role="tool", content=output, tool_call_id=call_id(item))
        case items.Message(role="system"):
            return chat.SystemMessage(role="system", content=_text(item.content, f"{path}.content"))
        case items.Message(role="developer"):
            return chat.DeveloperMessage(
                role="developer", content=_text(item.content, f"{path}.content")
            )
        case items.Message():
            content = _content(item.content, f"{path}.content")
            return chat.UserMessage.model_construct(role="user", content=content)
    raise unsupported(path, f"'{path}' has the type {item.type}, which is not supported here.")


def _text(content: Content, path: str) -> str:
    """The text of content; its parts are joined with newlines, as in chat completions."""
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{path}[{i}]") for i, part in enumerate(content))


def _content(content: Content, path: str) -> str | list[Any]:
    """The text of content, or its parts if it has images, audio or files."""
    if isinstance(content, str) or not any(isinstance(part, MEDIA) for part in content):
        return _text(content, path)
    return [_content_part(part, f"{path}[{i}]") for i, part in enumerate(content)]


def _content_part(part: items.Part, path: str) -> chat.TextPart | chat.SourcePart:
    """The same part of a chat message. Of an image or audio, little is left in the part itself."""
    match part:
        case items.InputImage():
            return _image(part, path)
        case items.InputAudio():
            data = part.input_audio.data
            given = chat.AudioData(data=data, format=part.input_audio.format)
            part.input_audio.data = shortened_data(data)
            return chat.AudioPart(type="input_audio", input_audio=given)
        case items.InputFile():
            return _file(part)
    return chat.TextPart(type="text", text=_part_text(part, path))


def _file(part: items.InputFile) -> chat.FilePart:
    file = chat.FileReference(
        file_id=part.file_id,
        file_data=part.file_data,
        file_url=part.file_url,
        filename=part.filename,
        detail=part.detail,
    )
    part.file_data = part.file_data and shortened_data(part.file_data)
    part.file_url = part.file_url and shortened(part.file_url)
    return chat.FilePart(type="file", file=file)


def _image(part: items.InputImage, path: str) -> chat.SourcePart:
    if (part.image_url is None) == (part.file_id is None):
        raise invalid(path, f"'{path}' must have either image_url or file_id.")
    if part.image_url is None:
        file = chat.FileReference(file_id=part.file_id, detail=part.detail)
        return chat.ImageFilePart(type="file", file=file)
    url, part.image_url = part.image_url, shortened(part.image_url)
    image_url = chat.ImageUrl(url=url, detail=part.detail)
    return chat.ImagePart(type="image_url", image_url=image_url)


def _part_text(part: items.Part, path: str) -> str:
    match part:
        case items.InputText():
            return part.text
        case items.Refusal():
            return part.refusal
        case items.InputImage() | items.InputAudio() | items.InputFile():
            raise unsupported(
                path,
                f"'{path}': images, audio and files may be in messages of the user and in outputs "
                "of calls, not in other messages.",
            )
    raise unsupported(
        path,
        f"'{path}': only text, images, audio and files are read here. Images are of the type "
        "input_image, audio of input_audio, videos and documents of input_file.",
    )
