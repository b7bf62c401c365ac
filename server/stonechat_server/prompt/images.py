"""Puts the images of a prompt where the chat template has written their placeholders."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.schema.messages import SourcePart

if TYPE_CHECKING:
    from stonechat_models import MediaInput, PreparedMedia
    from stonechat_server.prompt.special_tokens import SpecialTokenGuard
    from stonechat_server.schema.messages import Message


class ImageItem(dict[str, Any]):
    """An image in the content of a template's message: `{"type": "image"}`, and which it is."""

    def __init__(self, image: "PreparedMedia") -> None:
        super().__init__(type="image")
        self.image = image


class ImagePlacesError(Exception):
    """A prompt has more or fewer places for images than it has images."""


@dataclass(slots=True)
class PromptImages:
    """The images of one prompt. `guard` marks what clients write, also placeholders."""

    guard: "SpecialTokenGuard"
    images: "list[PreparedMedia]" = field(default_factory=list)
    """Those of the latest rendering, in their order."""

    def fill(self, prompt: str, messages: Sequence[TemplateMessage]) -> str:
        """Replace the i-th placeholder that the template wrote by the text of the i-th image.

        Raises `ImagePlacesError`.
        """
        self.images = images_in(messages)
        if not self.images:
            return prompt
        placeholder, filled, number = self.images[0].placeholder, [], 0
        for piece, is_clients in self.guard.pieces(prompt):
            if is_clients or placeholder not in piece:
                filled.append(piece)
                continue
            first, *others = piece.split(placeholder)
            filled.append(first)
            for text in others:
                if number < len(self.images):
                    filled += self.images[number].text, text
                number += 1
        if number != len(self.images):
            raise ImagePlacesError(
                f"it has places for {number} images, and the messages have {len(self.images)}"
            )
        return "".join(filled)

    def inputs(self, token_ids: Sequence[int], token_id: int) -> "tuple[MediaInput, ...]":
        """The images for the engine. Raises `ImagePlacesError` if placeholder tokens are missing.

        `token_id` is the placeholder token. Each image takes as many as it needs, in order.
        """
        places = [i for i, other in enumerate(token_ids) if other == token_id]
        num_needed = sum([image.num_tokens for image in self.images])
        if len(places) != num_needed:
            raise ImagePlacesError(
                f"its tokens have {len(places)} places for images, which need {num_needed}"
            )
        inputs, start = [], 0
        for image in self.images:
            inputs.append(image.placed(_runs(places[start : start + image.num_tokens])))
            start += image.num_tokens
        return tuple(inputs)


def placeholder_of(messages: "Sequence[Message]") -> str:
    """What the template writes for each of the images in messages; empty if there are none."""
    for message in messages:
        for part in message.content if isinstance(message.content, list) else ():
            if isinstance(part, SourcePart) and part.image is not None:
                return part.image.placeholder
    return ""


def images_in(messages: Sequence[TemplateMessage]) -> "list[PreparedMedia]":
    """The images in messages, in their order."""
    return [
        item.image
        for message in messages
        if isinstance(message.get("content"), list)
        for item in message["content"]
        if isinstance(item, ImageItem)
    ]


def _runs(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as runs: the start and the length of each."""
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
    ends = [*starts[1:], len(places)]
    return tuple((places[start], end - start) for start, end in zip(starts, ends, strict=True))


def with_moved_images(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Move images out of the results of tools, into a user message behind the results.

    If a user message follows anyway, they go to its beginning.
    """
    moved: list[TemplateMessage] = []
    held: list[Any] = []
    for message in messages:
        is_result = message["role"] == "tool"
        if held and not is_result:
            moved, message, held = _released(moved, held, message)
        if is_result and isinstance(message.get("content"), list):
            held += [item for item in message["content"] if isinstance(item, ImageItem)]
            message = {**message, "content": _text(message["content"])}
        moved.append(message)
    return [*moved, {"role": "user", "content": held}] if held else moved


def _released(
    moved: list[TemplateMessage], held: list[Any], following: TemplateMessage
) -> tuple[list[TemplateMessage], TemplateMessage, list[Any]]:
    if following["role"] != "user":
        return [*moved, {"role": "user", "content": held}], following, []
    content = following.get("content") or ""
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return moved, {**following, "content": [*held, *items]}, []


def _text(items: Sequence[Any]) -> str:
    texts = [item["text"] for item in items if not isinstance(item, ImageItem)]
    return "\n".join(texts) or MOVED


MOVED = "The result is the image in the next message."
"""Stands in a result of which nothing but images was there."""
