"""The body of `POST /infill`. Types and ranges are checked here; `fields` says what each does."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.sampling_fields import (
    RepetitionPenalty,
    SamplingOptions,
    StopStrings,
    Whole,
)

Milliseconds = Annotated[Whole, Field(ge=-1, lt=2**31)]


class ContextFile(WireModel):
    """A piece of another file, or of another place of this one."""

    text: str
    filename: str | None = None
    time: Any = None


class InfillRequest(SamplingOptions):
    """A text with a gap. `prompt` is what the line of the gap begins with.

    An empty `model` is none: llama.vim sends it.
    """

    model: Annotated[str | None, BeforeValidator(lambda name: name or None)] = None
    input_prefix: str
    input_suffix: str
    input_extra: Annotated[ListOf[ContextFile], Field(max_length=1024)] | None = None
    prompt: str | None = None
    stream: bool | None = None
    n_predict: Annotated[Whole, Field(ge=-1, lt=2**31)] | None = None
    n_indent: Annotated[Whole, Field(ge=0, le=1000)] | None = None
    t_max_predict_ms: Milliseconds | None = None
    repeat_penalty: RepetitionPenalty | None = None
    stop: StopStrings | None = None
    response_fields: Annotated[ListOf[str], Field(max_length=64)] | None = None

    # Fields without effect here.
    t_max_prompt_ms: Milliseconds | None = None
    samplers: Any = None
    cache_prompt: Any = None
    id_slot: Any = None
    lora: Any = None
