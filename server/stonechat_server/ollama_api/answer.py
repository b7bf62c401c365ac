"""What clients receive. Durations are in nanoseconds. A key whose value is `UNSET` is left out."""

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from stonechat_server.schema.responses import TokenLogprobBody


class CallBody(msgspec.Struct, kw_only=True):
    """The function of a call. The arguments are an object."""

    index: int
    name: str
    arguments: msgspec.Raw


class ToolCall(msgspec.Struct, kw_only=True):
    """A whole call."""

    id: str
    function: CallBody


class Said(msgspec.Struct, kw_only=True):
    """What the model says, or what a line adds to it."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Line(msgspec.Struct, kw_only=True):
    """What a line of a stream has beside the text. The last one has the counts and durations."""

    model: str
    created_at: datetime
    done: bool = False
    done_reason: Literal["stop", "length", "load", "unload"] | UnsetType = UNSET
    logprobs: list[TokenLogprobBody] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class OllamaChatLine(Line, kw_only=True):
    """A line of `/api/chat`, or its plain answer."""

    message: Said

    @classmethod
    def of(cls, said: Said, **values: Any) -> "OllamaChatLine":
        """A line that says this."""
        return cls(message=said, **values)

    @property
    def said(self) -> Said:
        return self.message


class OllamaGenerateLine(Line, kw_only=True):
    """A line of `/api/generate`, or its plain answer."""

    response: str
    thinking: str | UnsetType = UNSET

    @classmethod
    def of(cls, said: Said, **values: Any) -> "OllamaGenerateLine":
        """A line that says this. There are no tools, so there are no calls."""
        return cls(response=said.content, thinking=said.thinking, **values)

    @property
    def said(self) -> Said:
        return Said(content=self.response, thinking=self.thinking)


TextLine = OllamaChatLine | OllamaGenerateLine


class OllamaEmbedAnswer(msgspec.Struct, kw_only=True):
    """The embeddings in the order of the inputs."""

    model: str
    embeddings: list[list[float]]
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET


class OllamaEmbeddingsAnswer(msgspec.Struct):
    """The embedding of the only text."""

    embedding: list[float]


class OllamaStatus(msgspec.Struct):
    """The end of an action."""

    status: Literal["success"] = "success"


class OllamaVersion(msgspec.Struct):
    """The version of Ollama whose API is spoken."""

    version: str
