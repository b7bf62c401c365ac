"""`POST /v1/audio/transcriptions` and `POST /v1/audio/translations`."""

from typing import Any

from stonechat_server.api.openapi.document import GENERATION_ERRORS, HEADERS, errors, json_body
from stonechat_server.api.router import Router
from stonechat_server.api.shared.generate import route_of
from stonechat_server.transcriptions_api.endpoint import TranscriptionEndpoint

router = Router(tags=["Audio"])
TRANSCRIPTIONS = TranscriptionEndpoint("transcribe")
TRANSLATIONS = TranscriptionEndpoint("translate")

_FIELDS: dict[str, Any] = {
    "file": {"type": "string", "format": "binary"},
    "model": {"type": "string"},
    "prompt": {"type": "string"},
    "response_format": {
        "type": "string",
        "enum": ["json", "text", "verbose_json", "srt", "vtt"],
    },
    "timestamp_granularities[]": {
        "type": "array",
        "items": {"type": "string", "enum": ["segment", "word"]},
    },
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "stream": {"type": "boolean"},
    "seed": {"type": "integer"},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "max_completion_tokens": {"type": "integer"},
    "user": {"type": "string"},
}
_LANGUAGE = {"language": {"type": "string"}}


def _form(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": ["file"]}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def _answers() -> dict[int | str, dict[str, Any]]:
    content = {
        **json_body("Transcription", "VerboseTranscription"),
        "text/plain": {"schema": {"type": "string"}},
        "text/event-stream": {
            "schema": {},
            "x-event-schema": {"$ref": "#/components/schemas/TranscriptDone"},
        },
    }
    what = "The text; with `stream`, events `TranscriptDelta` and at the end `TranscriptDone`"
    return {
        200: {"description": what, "headers": HEADERS, "content": content},
        **errors(*GENERATION_ERRORS),
    }


router.post(
    TRANSCRIPTIONS.path,
    operation_id="createTranscription",
    responses=_answers(),
    openapi_extra=_form(_FIELDS | _LANGUAGE),
    summary="Create Transcription",
    description="Write down what is said in a file, with a model that hears.",
)(route_of(TRANSCRIPTIONS))
router.post(
    TRANSLATIONS.path,
    operation_id="createTranslation",
    responses=_answers(),
    openapi_extra=_form(_FIELDS),
    summary="Create Translation",
    description="Write in English what is said in a file, with a model that hears.",
)(route_of(TRANSLATIONS))
