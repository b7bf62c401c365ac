"""Images take the places that the template has written for them, whatever clients write."""

from typing import Any

import msgspec
import pytest

from stonechat_models import AudioOptions, ImageOptions
from stonechat_server.errors import APIError
from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions, Templates
from stonechat_server.prompt.media import (
    MediaItem,
    MediaPlacesError,
    PromptMedia,
    with_moved_media,
)
from tests.server.fake_engine import ByteTokenizer
from tests.server.fake_media import AUDIO_PLACEHOLDER, PLACEHOLDER, TEMPLATE, png, prepared, wav

TOKENIZER = ByteTokenizer(chat_template=TEMPLATE)
GUARD = Templates(TOKENIZER).guard(ChatTemplate(TEMPLATE, {}), {PLACEHOLDER})
CALLS = [
    {"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": {}}} for i in "12"
]


def item(num_tokens: int) -> MediaItem:
    return MediaItem(prepared(png(str(num_tokens), num_tokens), ImageOptions()))


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def result(call_id: str, *content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": list(content)}


def fill(prompt: str, *items: MediaItem) -> str:
    return PromptMedia(GUARD).fill(prompt, [{"role": "user", "content": list(items)}])


def test_places_are_filled_in_order() -> None:
    filled = fill(f"a{PLACEHOLDER}{PLACEHOLDER}b", item(1), item(2))
    assert filled == "a[\x01][\x01\x01]b"


def test_images_are_numbered_if_the_model_wants_it() -> None:
    items = [
        MediaItem(msgspec.structs.replace(item(n).media, number_marks=("<id>", "</id>")))
        for n in (1, 2)
    ]
    filled = fill(f"a{PLACEHOLDER}b{PLACEHOLDER}", *items)
    assert filled == "a<id>0</id>[\x01]b<id>1</id>[\x01\x01]"


@pytest.mark.parametrize("prompt", ["a", f"{PLACEHOLDER}a", f"{PLACEHOLDER * 3}"])
def test_a_wrong_number_of_places(prompt: str) -> None:
    with pytest.raises(MediaPlacesError, match="the messages have 2"):
        fill(prompt, item(1), item(1))


def test_what_clients_write_is_no_place() -> None:
    mark = GUARD._mark
    typed = f"{mark}{PLACEHOLDER}{mark}"
    prompt = f"{typed}{PLACEHOLDER}{typed}{typed}{PLACEHOLDER}"
    assert fill(prompt, item(1), item(2)) == f"{typed}[\x01]{typed}{typed}[\x01\x01]"


def test_places_of_tokens() -> None:
    images = PromptMedia(GUARD)
    images.media = [item(3).media, item(1).media]
    found = images.inputs([1, 1, 5, 1, 5, 1], {"image": 1})
    assert [image.places for image in found] == [((0, 2), (3, 1)), ((5, 1),)]
    for ids in ([1] * 3, [1] * 5, []):
        with pytest.raises(MediaPlacesError, match="which need 4"):
            images.inputs(ids, {"image": 1})


def test_results_in_another_order_keep_their_images() -> None:
    """The template takes one call in a message, so each result moves behind its call."""
    one_call = TEMPLATE.replace(
        "{{ message.role }}",
        """{{ message.role }}
{%- if message.tool_calls %}{{ message.tool_calls[0].function.name }}{% endif %}
{%- if message.tool_calls | default([]) | length > 1 %}{{ raise_exception('one') }}{% endif %}""",
    )
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        result("c2", text("second"), item(2)),
        result("c1", text("first"), item(1)),
    ]
    images = PromptMedia(GUARD)
    prompt = ChatTemplate(one_call, {}).render(messages, RenderOptions(media=images))
    assert "first<v>[\x01]</v>" in prompt
    assert "second<v>[\x01\x01]</v>" in prompt
    assert [image.num_tokens for image in images.media] == [1, 2]


def test_images_move_behind_the_results() -> None:
    first, second, third = item(1), item(2), item(3)
    question, answer = {"role": "user", "content": "so?"}, {"role": "assistant", "content": "ah"}
    messages = [result("a", text("x"), first), result("b", second), question, result("c", third)]
    moved = with_moved_media([*messages, answer])
    assert [message["content"] for message in moved] == [
        "x",
        "The result is the image in the next message.",
        [first, second, text("so?")],
        "The result is the image in the next message.",
        [third],
        "ah",
    ]
    assert [message["role"] for message in moved][-3:] == ["tool", "user", "assistant"]
    assert with_moved_media(moved) == moved


def test_a_template_of_text_says_what_is_missing() -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    messages = [{"role": "user", "content": [text("a"), item(1)]}]
    with pytest.raises(APIError, match="places for 0 images, and the messages have 1"):
        plain.render(messages, RenderOptions(media=PromptMedia(GUARD)))


def test_text_before_parts_has_a_blank_line() -> None:
    messages = [{"role": "user", "content": [item(1), text("?")]}]
    options = RenderOptions(media=PromptMedia(GUARD), added_text="Answer in JSON.")
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + (
        TEMPLATE
    )
    prompt = ChatTemplate(no_system, {}).render(messages, options)
    assert "user\nAnswer in JSON.\n\n<v>[\x01]</v>?<|im_end|>" in prompt


def clip(num_tokens: int) -> MediaItem:
    return MediaItem(prepared(wav(str(num_tokens), num_tokens), AudioOptions()))


def test_images_and_audio_have_placeholders_of_their_own() -> None:
    """One may be the beginning of the other."""
    first, second = item(1), clip(2)
    second.media = msgspec.structs.replace(second.media, placeholder=PLACEHOLDER + "x")
    filled = fill(f"{PLACEHOLDER}x{PLACEHOLDER}", first, second)
    assert filled == "(\x02\x02)[\x01]"


def test_audio_for_a_template_of_texts_follows_without_a_break() -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m.content + ';' }}{% endfor %}", {})
    media = PromptMedia(Templates(TOKENIZER).guard(plain, {AUDIO_PLACEHOLDER}))
    content = [clip(2), text("what?"), clip(1)]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    prompt = plain.render(messages, RenderOptions(media=media))
    assert prompt == "(\x02\x02)what?(\x02);a;"
    assert [one.num_tokens for one in media.media] == [2, 1]


def test_a_template_that_refuses_is_given_no_placeholders() -> None:
    refusing = ChatTemplate("{{ raise_exception('users only') }}", {})
    with pytest.raises(APIError, match="users only"):
        refusing.render(
            [{"role": "user", "content": [clip(1)]}], RenderOptions(media=PromptMedia(GUARD))
        )
