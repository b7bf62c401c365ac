"""The endpoints of transcriptions and translations: speech in a file to text."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from stonechat_models import ModelInfo
from stonechat_server.access.auth import Identity
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import invalid, unsupported
from stonechat_server.media.references import MediaReference
from stonechat_server.prompt.chat_template import ChatTemplate
from stonechat_server.request.field_checks import ignored_params, refuse_rejected
from stonechat_server.request.prepare import PreparedRequest, prepare, render
from stonechat_server.schema.messages import AudioData, AudioPart, UserMessage
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call, Endpoint
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead
from stonechat_server.transcriptions_api.families import (
    Speech,
    TaggedReader,
    Task,
    TextReader,
    family_of,
    variables_of,
)
from stonechat_server.transcriptions_api.fields import NO_SPEAKERS, TRANSCRIPTION_FIELDS
from stonechat_server.transcriptions_api.request import TranscriptionRequest, read_form
from stonechat_server.transcriptions_api.speech import check_speech, prepare_speech
from stonechat_server.transcriptions_api.writer import TranscriptCollector, TranscriptWriter

if TYPE_CHECKING:
    from stonechat_models import PreparedMedia

PATHS: dict[Task, str] = {
    "transcribe": "/v1/audio/transcriptions",
    "translate": "/v1/audio/translations",
}
TIMED_FORMATS = frozenset({"srt", "vtt"})
NO_TIMES = "this model gives no timestamps"
SHARED_FIELDS = frozenset(
    {"model", "stream", "seed", "top_p", "max_completion_tokens", "max_tokens", "user"}
)
"""Fields that mean what they mean in a chat request."""


@dataclass(slots=True, kw_only=True)
class TranscriptionCall(Call):
    """A call, and how its answer is read."""

    part: AudioPart
    seconds: float | None = None
    """The length of the clip, for a model that counts no tokens of audio."""
    text: TextReader = field(default_factory=TextReader)


class TranscriptionEndpoint(Endpoint):
    """Speech to text: in its own language, or in English."""

    wire_type = TranscriptionRequest
    id_prefix = "transcript-"
    prompt_fields = frozenset({"prompt", "language"})
    takes_media = True
    takes_form = True

    def __init__(self, task: Task) -> None:
        self._task = task
        self.path = PATHS[task]

    def parse_form(self, body: bytes, content_type: str) -> TranscriptionRequest:
        return read_form(body, content_type)

    def read(self, wire: TranscriptionRequest, services: Services, identity: Identity) -> Call:
        _check(wire, self._task)
        part = AudioPart(type="input_audio", input_audio=AudioData(data="", format="wav"))
        request = ChatCompletionRequest(
            messages=[UserMessage.model_construct(role="user", content=[part])],
            temperature=wire.temperature or 0.0,
            reasoning_effort="none",
            **{name: getattr(wire, name) for name in SHARED_FIELDS & wire.model_fields_set},
        )
        return TranscriptionCall(
            request=request,
            wire=wire,
            ignored=ignored_params(wire, TRANSCRIPTION_FIELDS),
            names=[("messages", "file")],
            media=[MediaReference("file", part, "audio", wire.take_content())],
            part=part,
        )

    def check_model(self, call: Call, info: ModelInfo) -> None:
        wire: TranscriptionRequest = call.wire
        if info.speech is not None:
            check_speech(wire, self._task, info.speech)
            return
        super().check_model(call, info)
        if wire.response_format in TIMED_FORMATS:
            message = f"'response_format' cannot be {wire.response_format} ({NO_TIMES})."
            raise unsupported("response_format", message)
        if wire.timestamp_granularities:
            raise unsupported("timestamp_granularities", f"There are none: {NO_TIMES}.")

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        call = cast(TranscriptionCall, call)
        wire: TranscriptionRequest = call.wire
        engine = model.engine
        if engine.model.speech is not None:
            media, limit = _media_of(call), call.request.token_limit
            call.seconds = media.seconds
            return [prepare_speech(wire, self._task, limit, media, model)]
        family = family_of(engine.model.architecture)
        if self._task == "translate" and not family.translates:
            raise unsupported("model", "This model transcribes speech, and does not translate it.")
        speech = Speech(self._task, wire.language or "", wire.prompt or "")
        says_language = family.names_language and not speech.language
        if wire.response_format == "verbose_json" and not (
            says_language or speech.language or self._task == "translate"
        ):
            message = "verbose_json has the language, which this model does not say: give language."
            raise invalid("language", message, "missing_required_parameter")
        given = {"language": speech.language, "prompt": speech.prompt}
        without_effect = [name for name in given if given[name] and name not in family.takes]
        call.ignored = [*call.ignored, *without_effect]
        call.text = TaggedReader() if says_language else TextReader()
        messages = family.messages(speech, call.part)
        update: dict[str, Any] = {"messages": messages}
        if messages[-1].role == "assistant":
            update |= {"continue_final_message": True, "add_generation_prompt": False}
        template = None
        if family.template is not None:
            template = ChatTemplate(family.template, engine.tokenizer.special_tokens)
            update["chat_template_kwargs"] = variables_of(speech)
        request = cast(ChatCompletionRequest, call.request).model_copy(update=update)
        prompt = render(request, engine, model.templates, model.structure, template)
        return [prepare(request, prompt, engine, model.settings.max_completion_total)]

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> TranscriptWriter:
        call = cast(TranscriptionCall, call)
        return TranscriptWriter(head, reader, call.text, call.seconds)

    def collector(self, call: Call, head: CompletionHead) -> TranscriptCollector:
        call = cast(TranscriptionCall, call)
        wire: TranscriptionRequest = call.wire
        language = "english" if self._task == "translate" else wire.language or ""
        return TranscriptCollector(wire, self._task, call.text, _media_of(call).seconds, language)


def _media_of(call: TranscriptionCall) -> "PreparedMedia":
    media = call.part.media
    assert media is not None, "the file is loaded until the request ends"
    return media


def _check(wire: TranscriptionRequest, task: Task) -> None:
    """Raise `APIError` 400 for what is not supported."""
    refuse_rejected(wire, TRANSCRIPTION_FIELDS)
    if wire.response_format == "diarized_json":
        message = f"'response_format' cannot be diarized_json ({NO_SPEAKERS})."
        raise unsupported("response_format", message)
    if wire.stream and wire.response_format not in (None, "json"):
        raise invalid("response_format", "A stream has events of JSON: response_format is json.")
    if task == "translate" and wire.language:
        raise unsupported("language", "Translations are into English; 'language' is not taken.")
