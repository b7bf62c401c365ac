"""Translates messages with blocks to the messages of a chat."""

from collections.abc import Iterator, Sequence
from typing import Any

from stonechat_server.errors import unsupported
from stonechat_server.media.data_urls import is_data_url
from stonechat_server.media.document_text import written_text
from stonechat_server.media.references import shortened
from stonechat_server.messages_api import blocks
from stonechat_server.messages_api.marks import from_call_id, hidden_thinking, to_arguments
from stonechat_server.schema import messages as chat

NO_MEDIA = "images and files may be in user messages and in results of tools, not in other places."
NO_SOUND = (
    "the Messages API has no audio and no video. A model that hears takes audio in "
    "/v1/chat/completions and /v1/responses."
)
FILES = (blocks.DocumentData, blocks.UrlSource, blocks.FileSource)
ERROR_MARK = "Error: "
"""Begins the result of a call that failed, unless the result says so itself."""


ImagePaths = dict[int, str]
"""The path of each image and file in the client's body, by the `id` of its chat part."""


def to_chat_messages(
    system: str | Sequence[blocks.TextBlock] | None,
    messages: Sequence[blocks.Message],
    paths: ImagePaths,
) -> list[chat.Message]:
    """Translate a conversation. Its images and files are noted in `paths`.

    The results in a user message become messages before its text. Raises `APIError` 400 for blocks
    that are not supported.
    """
    translated: list[chat.Message] = []
    if system:
        translated.append(_system(system))
    for i, message in enumerate(messages):
        where = f"messages[{i}].content"
        match message:
            case blocks.SystemMessage():
                translated.append(_system(message.content))
            case blocks.UserMessage():
                translated += _from_user(message, where, paths)
            case blocks.AssistantMessage():
                translated.append(_from_assistant(message, where))
    return translated


def _system(content: str | Sequence[blocks.TextBlock]) -> chat.SystemMessage:
    return chat.SystemMessage(role="system", content=_text(content, ""))


def _from_user(
    message: blocks.UserMessage, where: str, paths: ImagePaths
) -> Iterator[chat.Message]:
    if isinstance(message.content, str):
        yield chat.UserMessage(role="user", content=message.content)
        return
    items: list[str | chat.SourcePart] = []
    for i, block in enumerate(message.content):
        if isinstance(block, blocks.ToolResultBlock):
            yield chat.ToolMessage(
                role="tool",
                tool_call_id=from_call_id(block.tool_use_id),
                content=_result(block, f"{where}[{i}].content", paths),
            )
        else:
            items += _items(block, f"{where}[{i}]", paths)
    if items:
        yield chat.UserMessage.model_construct(role="user", content=_content(items))


def _result(block: blocks.ToolResultBlock, where: str, paths: ImagePaths) -> str | list[Any]:
    content = block.content or ""
    given = [content] if isinstance(content, str) else content
    items = [
        item
        for i, part in enumerate(given)
        for item in ([part] if isinstance(part, str) else _items(part, f"{where}[{i}]", paths))
    ]
    text = "\n".join([item for item in items if isinstance(item, str)])
    if block.is_error and "error" not in text.lower():
        items = [ERROR_MARK + text, *(item for item in items if not isinstance(item, str))]
    return _content(items)


def _content(items: Sequence[str | chat.SourcePart]) -> str | list[Any]:
    """Texts as one text; with images, a list of parts."""
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) == len(items):
        return "\n".join(texts)
    return [
        chat.TextPart(type="text", text=item) if isinstance(item, str) else item for item in items
    ]


def _items(block: Any, where: str, paths: ImagePaths) -> list[str | chat.SourcePart]:
    """The text of a block, or an image or a file as a part of a chat message."""
    items: list[str | chat.SourcePart] = []
    if isinstance(block, blocks.ImageBlock):
        part: chat.SourcePart = _image(block.source)
    elif isinstance(block, blocks.DocumentBlock) and isinstance(block.source, FILES):
        if block.context:
            items.append(block.context)
        part = _file(block.source, block.title)
    else:
        return [_block_text(block, where)]
    paths[id(part)] = where
    return [*items, part]


def _file(source: Any, title: str | None) -> chat.FilePart:
    """A document as a part of a chat message. Little of its data is left in the block itself."""
    file = chat.FileReference(filename=title)
    match source:
        case blocks.FileSource():
            file.file_id = source.file_id
        case blocks.DocumentData():
            file.file_data, source.data = source.data, f"... ({len(source.data)} characters)"
        case blocks.UrlSource():
            file.file_url, source.url = source.url, shortened(source.url)
    return chat.FilePart(type="file", file=file)


def _image(source: Any) -> chat.ImagePart | chat.FilePart:
    """An image as a part of a chat message. Little of its data is left in the block itself."""
    match source:
        case blocks.FileSource():
            file = chat.FileReference(file_id=source.file_id)
            return chat.ImageFilePart(type="file", file=file)
        case blocks.Base64Source():
            url = source.data
            if not is_data_url(url):
                url = f"data:{source.media_type};base64,{url}"
            source.data = f"... ({len(source.data)} characters)"
        case blocks.UrlSource():
            url, source.url = source.url, shortened(source.url)
    return chat.ImagePart(type="image_url", image_url=chat.ImageUrl(url=url))


def _from_assistant(message: blocks.AssistantMessage, where: str) -> chat.AssistantMessage:
    """The blocks of an answer are pieces of one text, of one reasoning, and calls."""
    if isinstance(message.content, str):
        return chat.AssistantMessage(role="assistant", content=message.content)
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(message.content):
        match block:
            case blocks.TextBlock():
                texts.append(block.text)
            case blocks.ThinkingBlock():
                thoughts.append(block.thinking or hidden_thinking(block.signature))
            case blocks.ToolUseBlock():
                calls.append(_call(block))
            case blocks.ServerBlock():
                raise _server_block(block.type, f"{where}[{i}]")
    values: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        values |= {"tool_calls": calls, "content": values["content"] or None}
    if any(thoughts):
        values["reasoning_content"] = "".join(thoughts)
    return chat.AssistantMessage.model_construct(**values)


def _call(block: blocks.ToolUseBlock) -> chat.FunctionToolCall:
    function = chat.FunctionCall(name=block.name, arguments=to_arguments(block.input))
    return chat.FunctionToolCall(id=from_call_id(block.id), type="function", function=function)


def _text(content: str | Sequence[Any], where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join([_block_text(block, f"{where}[{i}]") for i, block in enumerate(content)])


def _block_text(block: Any, where: str) -> str:
    match block:
        case blocks.TextBlock():
            return block.text
        case blocks.DocumentBlock():
            text = written_text(block.title, _source_text(block.source, f"{where}.source"))
            return f"{block.context}\n{text}" if block.context else text
        case blocks.SearchResultBlock():
            text = _text(block.content, f"{where}.content")
            return "\n".join(filter(None, [block.title, block.source, text]))
        case blocks.SoundBlock():
            raise unsupported(where, f"'{where}': {NO_SOUND}")
        case blocks.ServerBlock():
            raise _server_block(block.type, where)
        case blocks.ImageBlock():
            message = "images may be in user messages and in results of tools, not in documents."
            raise unsupported(where, f"'{where}': {message}")
    raise unsupported(where, f"'{where}': {NO_MEDIA}")


def _source_text(source: Any, where: str) -> str:
    match source:
        case blocks.TextSource():
            return source.data
        case blocks.ContentSource():
            return _text(source.content, f"{where}.content")
    raise unsupported(where, f"'{where}': {NO_MEDIA}")


def _server_block(type: str, where: str) -> Exception:
    message = (
        f"'{where}': blocks of type '{type}' belong to Anthropic's own tools, not served here."
    )
    return unsupported(where, message)
