"""The messages of a conversation, by role, and the blocks of their content."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.messages import Url


class Block(WireModel):
    """What every block may have. Prefixes are cached with and without `cache_control`."""

    cache_control: dict[str, Any] | None = None


class TextBlock(Block):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(WireModel):
    """Reasoning of an earlier answer, with the signature that the server gave it."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(WireModel):
    """Reasoning that only the service which encrypted it can read."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Block):
    """The model's call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


class TextSource(WireModel):
    """A document as plain text."""

    type: Literal["text"]
    media_type: str | None = None
    data: str


class ContentSource(WireModel):
    """A document as blocks."""

    type: Literal["content"]
    content: "str | ListOf[SourceBlock]"


class DocumentData(WireModel):
    """A document in the request: a PDF file, as a rule. What it holds counts, not `media_type`."""

    type: Literal["base64"]
    media_type: str | None = None
    data: str


class UrlSource(WireModel):
    """An image or a document that the server fetches, or a `data:` URL."""

    type: Literal["url"]
    url: Url


class FileSource(WireModel):
    """An image or a document that was uploaded to `/v1/files`."""

    type: Literal["file"]
    file_id: str


class DocumentBlock(Block):
    """A document."""

    type: Literal["document"]
    source: Annotated[
        TextSource | ContentSource | DocumentData | UrlSource | FileSource,
        Field(discriminator="type"),
    ]
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Block):
    """A result of the client's own search."""

    type: Literal["search_result"]
    source: str
    title: str
    content: ListOf[TextBlock]


class Base64Source(WireModel):
    """An image in the request."""

    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/webp", "image/gif"]
    data: str


class ImageBlock(Block):
    """An image."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource | FileSource, Field(discriminator="type")]


class SoundBlock(Block):
    """Audio or video, which this API does not have. It is here so that the error can name it."""

    type: Literal["audio", "input_audio", "audio_url", "video", "video_url"]


class ServerBlock(Block):
    """A block of a tool that Anthropic runs. The schema has it so that the error can name it."""

    type: Literal[
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "advisor_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "tool_reference",
        "browser_state",
        "mcp_tool_use",
        "mcp_tool_result",
        "mcp_tool_listing",
        "container_upload",
        "compaction",
        "fallback",
    ]


SourceBlock = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]
ResultBlock = Annotated[
    TextBlock | DocumentBlock | SearchResultBlock | ImageBlock | SoundBlock | ServerBlock,
    Field(discriminator="type"),
]


class ToolResultBlock(Block):
    """The result of the call `tool_use_id`."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | ListOf[ResultBlock] | None = None
    is_error: bool | None = None


UserBlock = Annotated[
    TextBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolResultBlock
    | ImageBlock
    | SoundBlock
    | ServerBlock,
    Field(discriminator="type"),
]
AssistantBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ServerBlock,
    Field(discriminator="type"),
]


class SystemMessage(WireModel):
    """Instructions, also in the middle of a conversation."""

    role: Literal["system"]
    content: str | ListOf[TextBlock]


class UserMessage(WireModel):
    """What the user says, and the results of calls."""

    role: Literal["user"]
    content: str | Annotated[ListOf[UserBlock], Field(min_length=1)]


class AssistantMessage(WireModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | ListOf[AssistantBlock]


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
