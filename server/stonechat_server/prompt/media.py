"""Puts the media of a prompt where the chat template has written their placeholders."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stonechat_models import MediaInput, Modality, any_of
from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.prompt.special_tokens import SpecialTokenGuard
from stonechat_server.schema.messages import Message, SourcePart

if TYPE_CHECKING:
    from stonechat_models import PreparedMedia


class MediaItem(dict[str, Any]):
    """A medium in the content of a template's message: `{"type": "image"}`, and which."""

    def __init__(self, media: "PreparedMedia") -> None:
        super().__init__(type=media.modality)
        self.media = media


class MediaPlacesError(Exception):
    """A prompt has more or fewer places for images, audio or videos than it has of them."""


@dataclass(slots=True)
class PromptMedia:
    """The media of one prompt. `guard` marks what clients write, also placeholders."""

    guard: SpecialTokenGuard
    media: "list[PreparedMedia]" = field(default_factory=list)
    """Those of the latest rendering, in their order."""
    are_written: bool = False
    """Whether the texts of messages have placeholders, instead of items."""

    def fill(self, prompt: str, messages: Sequence[TemplateMessage]) -> str:
        """Replace the i-th placeholder of images that the template wrote by the text of the i-th
        image, and the same of audio and videos.

        Raises `MediaPlacesError`.
        """
        if not self.are_written:
            self.media = media_in(messages)
        if not self.media:
            return prompt
        waiting: dict[str, Iterator[PreparedMedia]] = {
            placeholder: iter([one for one in self.media if one.placeholder == placeholder])
            for placeholder in {one.placeholder for one in self.media}
        }
        placeholder = re.compile(any_of(waiting))
        numbers = dict.fromkeys(waiting, 0)

        def text_of(match: re.Match[str]) -> str:
            number = numbers[match[0]]
            numbers[match[0]] += 1
            found = next(waiting[match[0]], None)
            return match[0] if found is None else found.text_of(number)

        filled = [
            piece if is_clients else placeholder.sub(text_of, piece)
            for piece, is_clients in self.guard.pieces(prompt)
        ]
        self._check(numbers)
        return "".join(filled)

    def written(self, messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
        """The messages for a template that takes only texts: these have the placeholders.

        The texts around a placeholder follow it without a break, as such models are prompted.
        """
        self.media, self.are_written = media_in(messages), True
        return [
            {**message, "content": "".join(map(_written, message["content"]))}
            if isinstance(message.get("content"), list)
            else message
            for message in messages
        ]

    def _check(self, numbers: Mapping[str, int]) -> None:
        """Raise `MediaPlacesError` if a placeholder does not occur once for each of its media."""
        for placeholder, number in numbers.items():
            same = [one for one in self.media if one.placeholder == placeholder]
            if number != len(same):
                name = counted(same[0].modality)
                raise MediaPlacesError(
                    f"it has places for {number} {name}, and the messages have {len(same)}"
                )

    def inputs(
        self, token_ids: Sequence[int], placeholders: Mapping[str, int]
    ) -> tuple[MediaInput, ...]:
        """The media for the engine. Raises `MediaPlacesError` if places are missing.

        `placeholders` are the tokens by modality; images and videos may have the same. Each medium
        takes as many as it needs, in order.
        """
        inputs: list[MediaInput] = []
        for placeholder in dict.fromkeys(placeholders[one.modality] for one in self.media):
            same = [one for one in self.media if placeholders[one.modality] == placeholder]
            places = [i for i, other in enumerate(token_ids) if other == placeholder]
            num_needed = sum([one.num_tokens for one in same])
            if len(places) != num_needed:
                name = counted(same[0].modality)
                raise MediaPlacesError(
                    f"its tokens have {len(places)} places for {name}, which need {num_needed}"
                )
            start = 0
            for one in same:
                for i, piece in enumerate(one.pieces):
                    end = start + piece.num_tokens
                    inputs.append(one.placed(_runs(places[start:end]), i))
                    start = end
        return tuple(inputs)


def counted(modality: Modality) -> str:
    """What several of a modality are called."""
    return {"image": "images", "audio": "audio clips", "video": "videos"}[modality]


def placeholders_of(messages: Sequence[Message]) -> dict[Modality, str]:
    """What the template writes for the media of each modality that messages have."""
    return {
        part.media.modality: part.media.placeholder
        for message in messages
        for part in (message.content if isinstance(message.content, list) else ())
        if isinstance(part, SourcePart) and part.media is not None
    }


def has_audio(messages: Sequence[TemplateMessage]) -> bool:
    """Whether messages have items of audio."""
    return any(one.modality == "audio" for one in media_in(messages))


def media_in(messages: Sequence[TemplateMessage]) -> "list[PreparedMedia]":
    """The images, audio and videos in messages, in their order."""
    return [
        item.media
        for message in messages
        if isinstance(message.get("content"), list)
        for item in message["content"]
        if isinstance(item, MediaItem)
    ]


def _runs(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as runs: the start and the length of each."""
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
    ends = [*starts[1:], len(places)]
    return tuple((places[start], end - start) for start, end in zip(starts, ends, strict=True))


def with_moved_media(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Move media out of the results of tools, into a user message behind the results.

    If a user message follows anyway, they go to its beginning.
    """
    moved: list[TemplateMessage] = []
    held: list[Any] = []
    for message in messages:
        is_result = message["role"] == "tool"
        if held and not is_result:
            moved, message, held = _released(moved, held, message)
        if is_result and isinstance(message.get("content"), list):
            media = [item for item in message["content"] if isinstance(item, MediaItem)]
            held += media
            message = {**message, "content": _text(message["content"]) or _moved(media)}
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
    return "\n".join([item["text"] for item in items if not isinstance(item, MediaItem)])


def _moved(media: Sequence[MediaItem]) -> str:
    """What stands in a result of which nothing but media was there."""
    names = " and the ".join(dict.fromkeys(item["type"] for item in media))
    return f"The result is the {names} in the next message."


def _written(item: Any) -> str:
    return item.media.placeholder if isinstance(item, MediaItem) else str(item["text"])
