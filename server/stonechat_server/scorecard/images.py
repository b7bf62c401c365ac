"""Checks of images in messages, for models that take them."""

from typing import Any

from stonechat_server.client.synthetic_images import black_png, image_part, png
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

GROUP = "images"
QUESTION = "What do you see?"
MANY_PIXELS = 20_000
"""Pixels on a side of an image that no server should unpack."""


def _message(*parts: object) -> Json:
    return {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}


async def _ask(server: Server, *parts: object, **fields: Any) -> Answer:
    return await server.chat(messages=[_message(*parts)], max_tokens=1, **fields)


async def _tokens(server: Server, *parts: object) -> int:
    """The prompt's tokens. Raises NoAnswerError for another answer than 200."""
    answer = await _ask(server, *parts)
    answer.choice()
    return int(answer.usage["prompt_tokens"])


@check(GROUP, "an image in a data: URL", part="images")
async def one_image(server: Server) -> Finding:
    """The image takes tokens of the prompt."""
    answer = await _ask(server, image_part(png(96, 64, "a")))
    if answer.is_refusal:
        return refused(answer)
    more = answer.usage["prompt_tokens"] - await _tokens(server)
    return HONOURED if more > 1 else ignored("the image adds no token to the prompt")


@check(GROUP, "two images", part="images")
async def two_images(server: Server) -> Finding:
    """Both images take tokens."""
    first, second = image_part(png(96, 64, "a")), image_part(png(64, 96, "b"))
    answer = await _ask(server, first, second)
    if answer.is_refusal:
        return refused(answer)
    more = answer.usage["prompt_tokens"] - await _tokens(server, first)
    return HONOURED if more > 1 else ignored("the second image adds no token to the prompt")


@check(GROUP, "another image, another answer", part="images")
async def is_seen(server: Server) -> Finding:
    """The log-probabilities after two images of one size differ, and those after one do not."""
    seeds = ("a", "b", "b")
    fields = {"logprobs": True, "top_logprobs": 1}
    answers = [await _ask(server, image_part(png(96, 64, seed)), **fields) for seed in seeds]
    for answer in answers:
        if answer.is_refusal:
            return refused(answer)
    first, second, third = [(answer.choice().get("logprobs") or {}) for answer in answers]
    if not first.get("content"):
        return Finding(Verdict.UNKNOWN, "there are no log-probabilities to compare")
    if second["content"][0]["token"] != third["content"][0]["token"]:
        return wrong("the same image gave two greedy answers")
    return HONOURED if first != second else ignored("the answer is the same for another image")


@check(GROUP, "image tokens in the usage", part="images")
async def image_tokens(server: Server) -> Finding:
    """The details say how many tokens of the prompt are of images."""
    answer = await _ask(server, image_part(png(96, 64, "a")))
    if answer.is_refusal:
        return refused(answer)
    usage = answer.usage
    count = (usage.get("prompt_tokens_details") or {}).get("image_tokens")
    if count is None:
        return ignored("the usage does not say how many tokens are of images")
    return HONOURED if 0 < count < usage["prompt_tokens"] else wrong(f"{count} tokens of images")


@check(GROUP, "detail: low", part="images")
async def low_detail(server: Server) -> Finding:
    """A large image takes fewer tokens than with `high`."""
    counts = []
    for detail in ("low", "high"):
        answer = await _ask(server, image_part(png(1536, 1536, "a"), detail=detail))
        if answer.is_refusal:
            return refused(answer)
        counts.append(answer.usage["prompt_tokens"])
    low, high = counts
    if low > high:
        return wrong(f"low takes {low} tokens of the prompt, high {high}")
    return HONOURED if low < high else ignored(f"low and high both take {low} tokens")


@check(GROUP, "an image of a tool", part="images")
async def tool_image(server: Server) -> Finding:
    """A tool's result may have an image."""
    function = {"name": "take_photo", "arguments": "{}"}
    calls = [{"id": "call_1", "type": "function", "function": function}]

    async def ask(*parts: object) -> Answer:
        content = [{"type": "text", "text": "Here it is."}, *parts]
        messages = [
            {"role": "user", "content": "Take a photo."},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": content},
        ]
        return await server.chat(messages=messages, max_tokens=1)

    answer, without = await ask(image_part(png(96, 64, "a"))), await ask()
    if answer.is_refusal:
        return refused(answer)
    without.choice()
    more = answer.usage["prompt_tokens"] - without.usage["prompt_tokens"]
    return HONOURED if more > 1 else ignored("the image adds no token to the prompt")


@check(GROUP, "a broken image", part="images")
async def broken_image(server: Server) -> Finding:
    """A PNG file that ends in its middle is refused."""
    whole = png(96, 64, "a")
    return error_shape(await _ask(server, image_part(whole[: len(whole) // 2])), 400)


@check(GROUP, "an image with too many pixels", part="images")
async def bomb(server: Server) -> Finding:
    """A small file of 400 million pixels is refused, not unpacked."""
    return error_shape(await _ask(server, image_part(black_png(MANY_PIXELS))), 400, 413)


@check(GROUP, "an image at an address of the server itself", part="images")
async def inside_address(server: Server) -> Finding:
    """No request goes to the inside of the server's network."""
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/image.png"}}
    return error_shape(await _ask(server, part), 400)


@check(GROUP, "audio", part="images")
async def audio(server: Server) -> Finding:
    """Audio is read or refused, never dropped."""
    sound = {
        "data": "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=",
        "format": "wav",
    }
    answer = await _ask(server, {"type": "input_audio", "input_audio": sound})
    if answer.status != 200:
        return error_shape(answer, 400, 415, 422)
    more = answer.usage["prompt_tokens"] - await _tokens(server)
    return HONOURED if more > 1 else ignored("the audio adds no token to the prompt")
