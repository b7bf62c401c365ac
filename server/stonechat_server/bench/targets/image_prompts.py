"""Prompts with images for an engine in this process, made as a server makes them."""

import asyncio
import base64
from typing import Any

from stonechat_models import ImageOptions, MediaInput
from stonechat_server.bench.targets.workload import Prompt
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.prompt.chat_template import RenderOptions, Templates
from stonechat_server.prompt.media import MediaItem, PromptMedia


async def prompt_with_images(
    prompt: Prompt, engine: EngineLike, templates: Templates
) -> tuple[list[int], tuple[MediaInput, ...]]:
    """The tokens of a prompt of one message, and its images at their places.

    Raises `EngineError` if the model's processor fails, and `MediaPlacesError` if the template has
    no places for images.
    """
    assert engine.media_processor is not None
    (message,) = prompt.messages
    parts: Any = message["content"]
    files = [_file(part) for part in parts if part["type"] == "image_url"]
    options = ImageOptions(among_others=len(files) > 1)
    prepared = await asyncio.wrap_future(engine.media_processor.prepare(files, options))
    items: list[Any] = [MediaItem(image) for image in prepared]
    items += [part for part in parts if part["type"] != "image_url"]  # images come first
    template = templates.default
    media = PromptMedia(templates.guard(template, {prepared[0].placeholder}))
    text = template.render([{**message, "content": items}], RenderOptions(media=media))
    token_ids = engine.tokenizer.encode(text)
    return token_ids, media.inputs(token_ids, engine.model.media_token_ids)


def _file(part: Any) -> bytes:
    return base64.b64decode(part["image_url"]["url"].partition(",")[2])
