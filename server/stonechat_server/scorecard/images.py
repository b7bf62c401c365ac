"""Checks of images in messages, for models that take them."""

from stonechat_server.client.synthetic_images import black_png, image_part, png
from stonechat_server.scorecard.media import adds_tokens, ask, is_counted, is_perceived, num_tokens
from stonechat_server.scorecard.outcome import (
    HONOURED,
    Finding,
    check,
    error_shape,
    ignored,
    wrong,
)
from stonechat_server.scorecard.server import Answer, Server, taken

GROUP = "images"
MANY_PIXELS = 20_000
"""Pixels on a side of an image that no server should unpack."""


@check(GROUP, "an image in a data: URL", part="images")
async def one_image(server: Server) -> Finding:
    """The image takes tokens of the prompt."""
    return await adds_tokens(server, image_part(png(96, 64, "a")), what="image")


@check(GROUP, "two images", part="images")
async def two_images(server: Server) -> Finding:
    """Both images take tokens."""
    first, second = image_part(png(96, 64, "a")), image_part(png(64, 96, "b"))
    return await adds_tokens(server, first, second, what="second image")


@check(GROUP, "another image, another answer", part="images")
async def is_seen(server: Server) -> Finding:
    """The image has an effect on the answer."""
    first, second = image_part(png(96, 64, "a")), image_part(png(96, 64, "b"))
    return await is_perceived(server, first, second, "image")


@check(GROUP, "image tokens in the usage", part="images")
async def image_tokens(server: Server) -> Finding:
    """The details say how many tokens of the prompt are of images."""
    return await is_counted(server, [image_part(png(96, 64, "a"))], "image_tokens", "images")


@check(GROUP, "detail: low", part="images")
async def low_detail(server: Server) -> Finding:
    """A large image takes fewer tokens than with `high`."""
    counts = []
    for detail in ("low", "high"):
        answer = taken(await ask(server, image_part(png(1536, 1536, "a"), detail=detail)))
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

    async def after_call(*parts: object) -> Answer:
        content = [{"type": "text", "text": "Here it is."}, *parts]
        messages = [
            {"role": "user", "content": "Take a photo."},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": content},
        ]
        return await server.chat(messages=messages, max_tokens=1)

    answer = taken(await after_call(image_part(png(96, 64, "a"))))
    without = await after_call()
    without.choice()
    more = answer.usage["prompt_tokens"] - without.usage["prompt_tokens"]
    return HONOURED if more > 1 else ignored("the image adds no token to the prompt")


@check(GROUP, "a broken image", part="images")
async def broken_image(server: Server) -> Finding:
    """A PNG file that ends in its middle is refused."""
    whole = png(96, 64, "a")
    return error_shape(await ask(server, image_part(whole[: len(whole) // 2])), 400)


@check(GROUP, "an image with too many pixels", part="images")
async def bomb(server: Server) -> Finding:
    """A small file of 400 million pixels is refused, not unpacked."""
    return error_shape(await ask(server, image_part(black_png(MANY_PIXELS))), 400, 413)


@check(GROUP, "an image at an address of the server itself", part="images")
async def inside_address(server: Server) -> Finding:
    """No request goes to the inside of the server's network."""
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/image.png"}}
    return error_shape(await ask(server, part), 400)


@check(GROUP, "audio", part="images")
async def audio(server: Server) -> Finding:
    """Audio is read or refused, never dropped."""
    sound = {
        "data": "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=",
        "format": "wav",
    }
    answer = await ask(server, {"type": "input_audio", "input_audio": sound})
    if answer.status != 200:
        return error_shape(answer, 400, 415, 422)
    more = answer.usage["prompt_tokens"] - await num_tokens(server)
    return HONOURED if more > 1 else ignored("the audio adds no token to the prompt")
