"""The bodies of requests. Types and ranges are checked here; `fields.py` says what each does."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.requests import Effort
from stonechat_server.schema.response_format import SchemaText
from stonechat_server.schema.sampling_fields import (
    RepetitionPenalty,
    SamplingOptions,
    StopStrings,
    Whole,
)
from stonechat_server.schema.tools import FunctionTool

ZERO = re.compile(r"[+-]?(0+(\.0*)?|(0+(\.0*)?(h|ms?|s|ns|[uµμ]s))+)")
"""A duration of nothing, such as 0, 0s or 0h0m0s."""


class Options(SamplingOptions):
    """How text is generated."""

    stop: StopStrings | None = None
    num_predict: Annotated[Whole, Field(ge=-2)] | None = None
    repeat_penalty: RepetitionPenalty | None = None

    # Options without effect here.
    draft_num_predict: Any = None
    embedding_only: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    low_vram: Any = None
    main_gpu: Any = None
    mirostat: Any = None
    mirostat_eta: Any = None
    mirostat_tau: Any = None
    num_batch: Any = None
    num_ctx: Any = None
    num_gpu: Any = None
    num_keep: Any = None
    num_thread: Any = None
    numa: Any = None
    penalize_newline: Any = None
    repeat_last_n: Any = None
    tfs_z: Any = None
    typical_p: Any = None
    use_mlock: Any = None
    use_mmap: Any = None
    vocab_only: Any = None


class CalledFunction(WireModel):
    """A function, and the arguments of its call as an object."""

    name: str
    arguments: dict[str, Any] | None = None
    index: Whole | None = None


class Call(WireModel):
    """The model's call of a function."""

    id: str | None = None
    type: str | None = None
    function: CalledFunction


class Message(WireModel):
    """A message of any role. Images are base64."""

    role: Annotated[
        Literal["system", "user", "assistant", "tool"],
        BeforeValidator(lambda role: role.lower() if isinstance(role, str) else role),
    ]
    content: str | None = None
    thinking: str | None = None
    images: ListOf[str] | None = None
    tool_calls: ListOf[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Tool(FunctionTool):
    """A function that the model may call."""

    type: Literal["function"] = "function"


class OllamaRequest(WireModel):
    """What all requests that need a model have."""

    model: str | None = None
    options: Options | None = None
    keep_alive: float | str | None = None

    @property
    def asks_to_unload(self) -> bool:
        """Whether the model shall not stay loaded."""
        value = self.keep_alive
        return bool(ZERO.fullmatch(value)) if isinstance(value, str) else value == 0


class TextRequest(OllamaRequest):
    """What requests for text have."""

    stream: bool | None = None
    format: SchemaText | None = None
    think: bool | Effort | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    shift: bool | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing to answer. Then it loads or unloads the model."""
        raise NotImplementedError


class OllamaChat(TextRequest):
    """A conversation to continue."""

    messages: ListOf[Message] | None = None
    tools: ListOf[Tool] | None = None
    truncate: bool | None = None

    @property
    def is_empty(self) -> bool:
        return not self.messages


class OllamaGenerate(TextRequest):
    """A prompt: a message of a user, or with `raw` or a suffix a text to continue."""

    prompt: str | None = None
    system: str | None = None
    images: ListOf[str] | None = None
    suffix: str | None = None
    raw: bool | None = None
    template: str | None = None
    context: ListOf[int] | None = None
    width: Whole | None = None
    height: Whole | None = None
    steps: Whole | None = None

    @property
    def is_empty(self) -> bool:
        return not self.prompt


class OllamaEmbed(OllamaRequest):
    """A text to embed, or several."""

    input: str | Annotated[ListOf[str], Field(max_length=2048)] | None = None
    truncate: bool | None = None
    dimensions: Annotated[Whole, Field(ge=0, lt=2**31)] | None = None

    @property
    def is_empty(self) -> bool:
        return not self.input


class OllamaEmbeddings(OllamaRequest):
    """One text to embed, in the older form."""

    prompt: str | None = None

    @property
    def is_empty(self) -> bool:
        return not self.prompt


class OllamaModelName(WireModel):
    """The model to describe or to fetch. `name` is the older name of `model`."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
