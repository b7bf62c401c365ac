"""What a model that does nothing but transcribe speech, such as Whisper, is asked."""

from typing import TYPE_CHECKING

from stonechat_models import SamplingParams, SpeechInfo, SpeechParams
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import invalid, unsupported
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.transcriptions_api.families import Task
from stonechat_server.transcriptions_api.languages import code_of, name_of
from stonechat_server.transcriptions_api.request import TranscriptionRequest

if TYPE_CHECKING:
    from stonechat_models import PreparedMedia

ENGLISH_ONLY = "This model knows English only"


def check_speech(wire: TranscriptionRequest, task: Task, info: SpeechInfo) -> None:
    """Raise `APIError` 400 for what the model does not do."""
    code = code_of(wire.language or "")
    if not info.languages and task == "translate":
        raise unsupported("model", f"{ENGLISH_ONLY}: it does not translate.")
    if not info.languages and code not in ("", "en"):
        raise unsupported("language", f"{ENGLISH_ONLY}, not {name_of(code)}.")
    if info.languages and code and code not in info.languages:
        known = ", ".join(sorted(info.languages))
        raise unsupported("language", f"This model does not know '{wire.language}', but {known}.")
    if wire.timestamp_granularities and wire.response_format != "verbose_json":
        message = "timestamp_granularities need the response_format verbose_json."
        raise invalid("timestamp_granularities", message)
    if wire.with_words and not info.has_words:
        message = "This model's files name no alignment_heads, so it gives no times of words."
        raise unsupported("timestamp_granularities", message)


def prepare_speech(
    wire: TranscriptionRequest,
    task: Task,
    limit: int | None,
    media: "PreparedMedia",
    model: ServedModel,
) -> PreparedRequest:
    """Make the input of the engine. `limit`: the most tokens of the transcript.

    Raises `APIError` 400 for a prompt that is too long.
    """
    info = model.engine.model.speech
    assert info is not None, "the model transcribes speech"
    prompt: list[int] = []
    if wire.prompt and wire.prompt.strip():
        ids = model.engine.tokenizer.encode_parts([(f" {wire.prompt.strip()}", True)])
        if len(ids) > info.max_prompt_tokens:
            message = (
                f"The prompt has {len(ids)} tokens, and this model reads at most "
                f"{info.max_prompt_tokens}: shorten it."
            )
            raise invalid("prompt", message, "context_length_exceeded")
        prompt = [info.prompt_id, *ids]
    return PreparedRequest(
        prompt_token_ids=[*prompt, info.start_id],
        params=SamplingParams(
            temperature=wire.temperature or 0.0,
            top_p=1.0 if wire.top_p is None else wire.top_p,
            seed=wire.seed,
            max_tokens=limit,
        ),
        new_parser=None,
        media=(media.placed(()),),
        speech=SpeechParams(
            task=task,
            language=code_of(wire.language or "") if info.languages else "",
            with_words=wire.with_words,
        ),
    )
