"""Checks of what every answer owes: its shape, its stream, its usage, its errors."""

from stonechat_server.scorecard.outcome import (
    HONOURED,
    Finding,
    check,
    error_shape,
    ignored,
    wrong,
)
from stonechat_server.scorecard.server import Json, Server

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
"""A picture of one pixel, as PNG in base64."""
ANSWER, STREAM, USAGE, ERRORS = "answer", "stream", "usage", "errors"


@check(ANSWER, "shape of the answer")
async def shape(server: Server) -> Finding:
    """The keys that clients rely on are there."""
    answer = await server.chat(max_tokens=4)
    answer.choice()
    body = answer.json()
    missing = [name for name in ("id", "object", "created", "model", "choices") if name not in body]
    if missing:
        return wrong(f"missing: {', '.join(missing)}")
    kind = body["object"]
    return HONOURED if kind == "chat.completion" else wrong(f"object is {kind!r}")


@check(ANSWER, "content as a list of parts")
async def parts(server: Server) -> Finding:
    """Text may come as a list of text parts."""
    content = [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello."}]
    answer = await server.ask(messages=[{"role": "user", "content": content}])
    answer.choice()
    return HONOURED


@check(ANSWER, "role developer")
async def developer(server: Server) -> Finding:
    """The role that replaces `system`."""
    messages = [
        {"role": "developer", "content": "Answer in one word."},
        {"role": "user", "content": "Name a colour."},
    ]
    answer = await server.ask(messages=messages)
    answer.choice()
    return HONOURED


def _text(chunks: list[Json]) -> str:
    deltas = [c.get("delta") or {} for chunk in chunks for c in chunk.get("choices") or []]
    return "".join(delta.get("content") or "" for delta in deltas)


@check(STREAM, "stream")
async def stream(server: Server) -> Finding:
    """The chunks add up to the plain answer, and `[DONE]` ends them."""
    plain, answer = await server.chat(), await server.ask(stream=True)
    chunks = answer.chunks()
    if answer.events()[-1] != "[DONE]":
        return wrong("the stream does not end with [DONE]")
    if _text(chunks) != plain.content:
        return wrong("the chunks do not add up to the plain answer")
    if len({chunk.get("id") for chunk in chunks}) != 1:
        return wrong("the id changes within the stream")
    reasons = [c.get("finish_reason") for chunk in chunks for c in chunk.get("choices") or []]
    return HONOURED if any(reasons) else wrong("no chunk has a finish_reason")


@check(STREAM, "n in a stream")
async def several(server: Server) -> Finding:
    """Both choices come, each with its index."""
    answer = await server.ask(n=2, stream=True, max_tokens=8, temperature=1)
    indices = {c["index"] for chunk in answer.chunks() for c in chunk.get("choices") or []}
    return HONOURED if indices == {0, 1} else ignored(f"the indices are {sorted(indices)}")


@check(STREAM, "stream_options.include_usage")
async def stream_usage(server: Server) -> Finding:
    """The last chunk has the usage and no choice; without the option there is none."""
    answer = await server.ask(stream=True, stream_options={"include_usage": True})
    chunks = answer.chunks()
    stated = [chunk for chunk in chunks if chunk.get("usage")]
    if not stated:
        return ignored("no chunk has a usage")
    if stated[-1] is not chunks[-1] or chunks[-1].get("choices"):
        return wrong("the usage is not in a last chunk of its own")
    return HONOURED


@check(STREAM, "logprobs in a stream")
async def stream_logprobs(server: Server) -> Finding:
    """Chunks carry the log-probabilities of their tokens."""
    answer = await server.ask(stream=True, logprobs=True, top_logprobs=2)
    parts = [c.get("logprobs") for chunk in answer.chunks() for c in chunk.get("choices") or []]
    return HONOURED if any(parts) else ignored("no chunk has log-probabilities")


@check(USAGE, "usage adds up")
async def usage(server: Server) -> Finding:
    """The total is the sum of both counts, and neither is 0."""
    counts = (await server.chat()).usage
    if not counts:
        return ignored("there is no usage")
    prompt, completion = counts["prompt_tokens"], counts["completion_tokens"]
    if not prompt or not completion:
        return wrong(f"{prompt} prompt tokens, {completion} completion tokens")
    return HONOURED if counts["total_tokens"] == prompt + completion else wrong("no sum")


@check(USAGE, "cached prompt tokens")
async def cached(server: Server) -> Finding:
    """A prompt that was just read is reported as cached."""
    text = "Repeat nothing of this. " + "The river runs through the old town. " * 40
    await server.chat(text, max_tokens=1)
    answer = await server.chat(text, max_tokens=1)
    details = answer.usage.get("prompt_tokens_details") or {}
    if details.get("cached_tokens") is None:
        return ignored("the usage does not say how many tokens were cached")
    return HONOURED if details["cached_tokens"] > 0 else wrong("0 tokens were cached")


@check(USAGE, "max_tokens 1 counts one token")
async def one_token(server: Server) -> Finding:
    """One token is counted as one."""
    count = (await server.chat(max_tokens=1)).usage.get("completion_tokens")
    return HONOURED if count == 1 else wrong(f"{count} tokens are counted")


@check(ERRORS, "a temperature of 9")
async def bad_value(server: Server) -> Finding:
    """A value out of range is refused."""
    return error_shape(await server.chat(temperature=9), 400)


@check(ERRORS, "messages missing")
async def no_messages(server: Server) -> Finding:
    """A required field is asked for."""
    return error_shape(await server.chat(messages=None), 400, 422)


@check(ERRORS, "broken JSON")
async def broken(server: Server) -> Finding:
    """A body that is not JSON is refused."""
    return error_shape(await server.post(b'{"model": "x", "messages": ['), 400)


@check(ERRORS, "an unknown model")
async def unknown_model(server: Server) -> Finding:
    """A model that is not there is a 404, not another model's answer."""
    return error_shape(await server.chat(model="no-such-model-here", max_tokens=1), 404, 400)


@check(ERRORS, "a prompt that is too long")
async def too_long(server: Server) -> Finding:
    """It is refused with `context_length_exceeded`, and not cut in silence."""
    answer = await server.chat("river " * 200_000, max_tokens=1)
    if answer.status == 200:
        count = answer.usage.get("prompt_tokens", 0)
        return HONOURED if count > 190_000 else wrong(f"the prompt was cut to {count} tokens")
    found = error_shape(answer, 400, 413)
    if found is not HONOURED or answer.status == 413:
        return found
    code = answer.json()["error"]["code"]
    return HONOURED if code == "context_length_exceeded" else wrong(f"`code` is {code!r}")


@check(ERRORS, "a field that does not exist")
async def unknown_field(server: Server) -> Finding:
    """An unknown field is refused, or the answer says that it had no effect."""
    answer = await server.chat(max_tokens=1, no_such_field=1)
    if answer.status == 200:
        named = any("no_such_field" in value for value in answer.headers.values())
        return HONOURED if named else ignored("nothing says that the field had no effect")
    return error_shape(answer, 400, 422)


@check(ERRORS, "an image for a model without eyes")
async def image(server: Server) -> Finding:
    """An image is read or refused, never dropped."""
    url = {"url": f"data:image/png;base64,{PIXEL}"}
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": url}]
    with_image = await server.chat(messages=[{"role": "user", "content": content}], max_tokens=1)
    if with_image.status != 200:
        return error_shape(with_image, 400, 415, 422)
    plain = await server.chat("What is this?", max_tokens=1)
    more = with_image.usage["prompt_tokens"] - plain.usage["prompt_tokens"]
    return HONOURED if more > 1 else ignored("the image adds no token to the prompt")
