"""The endpoint `/infill`: a text completion in llama.cpp's shape."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from stonechat_server.access.auth import Identity
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.completions_api.endpoint import CompletionsEndpoint
from stonechat_server.completions_api.prompts import PromptEncoder
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.infill_api.fields import INFILL_FIELDS
from stonechat_server.infill_api.lines import LineEnds
from stonechat_server.infill_api.prompts import InfillEncoder
from stonechat_server.infill_api.request import InfillRequest
from stonechat_server.infill_api.writer import InfillCollector, InfillWriter
from stonechat_server.request.field_checks import ignored_params
from stonechat_server.request.other_names import with_own_names
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.serving.endpoint import Call
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead

SAME_NAMES = (
    *("temperature", "top_k", "top_p", "min_p", "seed", "frequency_penalty", "presence_penalty"),
    *("repeat_penalty", "stop", "stream"),
)
"""Fields that text completions know too."""
NAMES = [
    *((name, "n_predict") for name in ("max_tokens", "max_completion_tokens")),
    ("repetition_penalty", "repeat_penalty"),
    ("prompt", "input_prefix"),
    ("suffix", "input_suffix"),
]
NO_LIMIT = -1


@dataclass(slots=True, kw_only=True)
class InfillCall(Call):
    """A call, and what encodes its prompt."""

    encoder: InfillEncoder | None = None


class InfillEndpoint(CompletionsEndpoint):
    """Text that belongs into a gap."""

    path = "/infill"
    wire_type = InfillRequest
    id_prefix = "infill-"
    prompt_fields = frozenset({"input_prefix", "input_suffix", "input_extra", "prompt"})

    def read(self, wire: Any, services: Services, identity: Identity) -> InfillCall:
        given = {name: getattr(wire, name) for name in SAME_NAMES}
        request = CompletionRequest(
            prompt=wire.input_prefix + (wire.prompt or ""),
            suffix=wire.input_suffix,
            max_tokens=NO_LIMIT if wire.n_predict is None else wire.n_predict,
            **{name: value for name, value in given.items() if value is not None},
        )
        return InfillCall(
            request=with_own_names(request),
            wire=wire,
            ignored=ignored_params(wire, INFILL_FIELDS),
            names=NAMES,
        )

    def encoder(self, call: Call, model: ServedModel) -> PromptEncoder:
        own, request = cast(InfillCall, call), cast(CompletionRequest, call.request)
        own.encoder = InfillEncoder(request, model.engine, call.wire.input_extra or ())
        return own.encoder

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        wire: InfillRequest = call.wire
        seconds = (wire.t_max_predict_ms or 0) / 1000
        new_parser = partial(LineEnds, wire.n_indent or 0, seconds)
        return [replace(one, new_parser=new_parser) for one in super().prepare(call, model)]

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> InfillWriter:
        encoder = cast(InfillCall, call).encoder
        return InfillWriter(head, reader, truncated=encoder is not None and encoder.is_cut)

    def collector(self, call: Call, head: CompletionHead) -> InfillCollector:
        return InfillCollector(call.wire.response_fields)
