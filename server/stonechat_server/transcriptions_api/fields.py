"""What each field of a transcription request does here: a table for the docs, the tests and the
checks."""

from stonechat_server.schema.fields import FIELDS, FieldNote, honoured, no_effect, rejected

NO_SPEAKERS = "the models here give no names of speakers"
TRANSCRIPTION_FIELDS: dict[str, FieldNote] = {
    "file": honoured("audio: WAV, MP3, FLAC or Ogg; a model may take only short clips"),
    "model": FIELDS["model"],
    "language": honoured(
        "of the speech, as ISO 639-1 (`en`) or in English; without it, the model finds it out"
    ),
    "prompt": honoured(
        "names and words that may occur; no effect with models whose format has no place for it"
    ),
    "response_format": honoured(
        "`json` (default), `text`, or `verbose_json`, which has the duration and the language, and "
        "segments if the model gives timestamps; `srt` and `vtt`: 400 if it gives none; "
        "`diarized_json`: 400"
    ),
    "temperature": honoured("0 to 2, default 0"),
    "stream": honoured("events `transcript.text.delta` and `transcript.text.done`; not `text`"),
    "timestamp_granularities": honoured(
        "`segment` (default) and `word`, in `verbose_json`; 400 if the model gives no timestamps"
    ),
    "include": rejected("log-probabilities are those of chat completions"),
    "known_speaker_names": rejected(NO_SPEAKERS),
    "known_speaker_references": rejected(NO_SPEAKERS),
    "chunking_strategy": no_effect("a clip is heard whole"),
    "seed": FIELDS["seed"],
    "top_p": FIELDS["top_p"],
    "max_completion_tokens": FIELDS["max_completion_tokens"],
    "max_tokens": FIELDS["max_tokens"],
    "user": FIELDS["user"],
}
