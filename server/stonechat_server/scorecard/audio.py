"""Checks of audio in messages, for models that take it."""

from typing import Any

from stonechat_server.client.synthetic_audio import audio_part, wav
from stonechat_server.scorecard.outcome import (
    HONOURED,
    Finding,
    Verdict,
    check,
    error_shape,
    ignored,
    refused,
    wrong,
)
from stonechat_server.scorecard.server import Answer, Json, Server

GROUP = "audio"
QUESTION = "What do you hear?"
SECONDS = 1.0


def _message(*parts: object) -> Json:
    return {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}


async def _ask(server: Server, *parts: object, **fields: Any) -> Answer:
    return await server.chat(messages=[_message(*parts)], max_tokens=1, **fields)


async def _tokens(server: Server, *parts: object) -> int:
    """The prompt's tokens. Raises NoAnswerError for another answer than 200."""
    answer = await _ask(server, *parts)
    answer.choice()
    return int(answer.usage["prompt_tokens"])


@check(GROUP, "audio in a message", part="audio")
async def one_clip(server: Server) -> Finding:
    """The clip takes tokens of the prompt."""
    answer = await _ask(server, audio_part(wav(SECONDS, "a")))
    if answer.is_refusal:
        return refused(answer)
    more = answer.usage["prompt_tokens"] - await _tokens(server)
    return HONOURED if more > 1 else ignored("the audio adds no token to the prompt")


@check(GROUP, "two clips", part="audio")
async def two_clips(server: Server) -> Finding:
    """Both clips take tokens."""
    first, second = audio_part(wav(SECONDS, "a")), audio_part(wav(SECONDS, "b"))
    answer = await _ask(server, first, second)
    if answer.is_refusal:
        return refused(answer)
    more = answer.usage["prompt_tokens"] - await _tokens(server, first)
    return HONOURED if more > 1 else ignored("the second clip adds no token to the prompt")


@check(GROUP, "another clip, another answer", part="audio")
async def is_heard(server: Server) -> Finding:
    """The log-probabilities after two clips of one length differ, and those after one do not."""
    fields = {"logprobs": True, "top_logprobs": 1}
    answers = [await _ask(server, audio_part(wav(SECONDS, seed)), **fields) for seed in "abb"]
    for answer in answers:
        if answer.is_refusal:
            return refused(answer)
    first, second, third = [(answer.choice().get("logprobs") or {}) for answer in answers]
    if not first.get("content"):
        return Finding(Verdict.UNKNOWN, "there are no log-probabilities to compare")
    if second["content"][0]["token"] != third["content"][0]["token"]:
        return wrong("the same clip gave two greedy answers")
    return HONOURED if first != second else ignored("the answer is the same for another clip")


@check(GROUP, "audio tokens in the usage", part="audio")
async def audio_tokens(server: Server) -> Finding:
    """The details say how many tokens of the prompt are of audio."""
    answer = await _ask(server, audio_part(wav(SECONDS, "a")))
    if answer.is_refusal:
        return refused(answer)
    usage = answer.usage
    count = (usage.get("prompt_tokens_details") or {}).get("audio_tokens")
    if not count:
        return ignored("the usage does not say how many tokens are of audio")
    return HONOURED if 0 < count < usage["prompt_tokens"] else wrong(f"{count} tokens of audio")


@check(GROUP, "a broken clip", part="audio")
async def broken_clip(server: Server) -> Finding:
    """A WAV file that ends in its header is refused."""
    return error_shape(await _ask(server, audio_part(wav(SECONDS, "a")[:20])), 400)


@check(GROUP, "a format that there is not", part="audio")
async def unknown_format(server: Server) -> Finding:
    """A name of a format that is none is refused."""
    return error_shape(await _ask(server, audio_part(wav(SECONDS, "a"), "sound")), 400)
