"""Checks of audio in messages, for models that take it."""

from stonechat_server.client.synthetic_audio import audio_part, wav
from stonechat_server.scorecard.media import adds_tokens, ask, is_counted, is_perceived
from stonechat_server.scorecard.outcome import Finding, check, error_shape
from stonechat_server.scorecard.server import Server

GROUP = "audio"
SECONDS = 1.0


@check(GROUP, "audio in a message", part="audio")
async def one_clip(server: Server) -> Finding:
    """The clip takes tokens of the prompt."""
    return await adds_tokens(server, audio_part(wav(SECONDS, "a")), what="audio")


@check(GROUP, "two clips", part="audio")
async def two_clips(server: Server) -> Finding:
    """Both clips take tokens."""
    clips = [audio_part(wav(SECONDS, seed)) for seed in "ab"]
    return await adds_tokens(server, *clips, what="second clip")


@check(GROUP, "another clip, another answer", part="audio")
async def is_heard(server: Server) -> Finding:
    """The clip has an effect on the answer."""
    first, second = audio_part(wav(SECONDS, "a")), audio_part(wav(SECONDS, "b"))
    return await is_perceived(server, first, second, "clip")


@check(GROUP, "audio tokens in the usage", part="audio")
async def audio_tokens(server: Server) -> Finding:
    """The details say how many tokens of the prompt are of audio."""
    return await is_counted(server, [audio_part(wav(SECONDS, "a"))], "audio_tokens", "audio")


@check(GROUP, "a broken clip", part="audio")
async def broken_clip(server: Server) -> Finding:
    """A WAV file that ends in its header is refused."""
    return error_shape(await ask(server, audio_part(wav(SECONDS, "a")[:20])), 400)


@check(GROUP, "a format that there is not", part="audio")
async def unknown_format(server: Server) -> Finding:
    """A name of a format that is none is refused."""
    return error_shape(await ask(server, audio_part(wav(SECONDS, "a"), "sound")), 400)
