"""Images take the places that the template has written for them, whatever clients write."""

from typing import Any

import pytest

from stonechat_models import ImageOptions
from stonechat_server.errors import APIError
from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions, Templates
from stonechat_server.prompt.images import (
    MOVED,
    ImageItem,
    ImagePlacesError,
    PromptImages,
    with_moved_images,
)
from tests.server.fake_engine import ByteTokenizer
from tests.server.fake_images import PLACEHOLDER, TEMPLATE, png, prepared

TOKENIZER = ByteTokenizer(chat_template=TEMPLATE)
GUARD = Templates(TOKENIZER).guard(ChatTemplate(TEMPLATE, {}), {PLACEHOLDER})
CALLS = [
    {"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": {}}} for i in "12"
]


def item(num_tokens: int) -> ImageItem:
    return ImageItem(prepared(png(str(num_tokens), num_tokens), ImageOptions()))


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def result(call_id: str, *content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": list(content)}


def fill(prompt: str, *items: ImageItem) -> str:
    return PromptImages(GUARD).fill(prompt, [{"role": "user", "content": list(items)}])


def test_places_are_filled_in_order() -> None:
    filled = fill(f"a{PLACEHOLDER}{PLACEHOLDER}b", item(1), item(2))
    assert filled == "a[\x01][\x01\x01]b"


@pytest.mark.parametrize("prompt", ["a", f"{PLACEHOLDER}a", f"{PLACEHOLDER * 3}"])
def test_a_wrong_number_of_places(prompt: str) -> None:
    with pytest.raises(ImagePlacesError, match="the messages have 2"):
        fill(prompt, item(1), item(1))


def test_what_clients_write_is_no_place() -> None:
    mark = GUARD._mark
    typed = f"{mark}{PLACEHOLDER}{mark}"
    prompt = f"{typed}{PLACEHOLDER}{typed}{typed}{PLACEHOLDER}"
    assert fill(prompt, item(1), item(2)) == f"{typed}[\x01]{typed}{typed}[\x01\x01]"


def test_places_of_tokens() -> None:
    images = PromptImages(GUARD)
    images.images = [item(3).image, item(1).image]
    found = images.inputs([1, 1, 5, 1, 5, 1], 1)
    assert [image.places for image in found] == [((0, 2), (3, 1)), ((5, 1),)]
    for ids in ([1] * 3, [1] * 5, []):
        with pytest.raises(ImagePlacesError, match="which need 4"):
            images.inputs(ids, 1)


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
    images = PromptImages(GUARD)
    prompt = ChatTemplate(one_call, {}).render(messages, RenderOptions(images=images))
    assert "first<v>[\x01]</v>" in prompt
    assert "second<v>[\x01\x01]</v>" in prompt
    assert [image.num_tokens for image in images.images] == [1, 2]


def test_images_move_behind_the_results() -> None:
    first, second, third = item(1), item(2), item(3)
    question, answer = {"role": "user", "content": "so?"}, {"role": "assistant", "content": "ah"}
    messages = [result("a", text("x"), first), result("b", second), question, result("c", third)]
    moved = with_moved_images([*messages, answer])
    assert [message["content"] for message in moved] == [
        "x",
        MOVED,
        [first, second, text("so?")],
        MOVED,
        [third],
        "ah",
    ]
    assert [message["role"] for message in moved][-3:] == ["tool", "user", "assistant"]
    assert with_moved_images(moved) == moved


def test_a_template_of_text_says_what_is_missing() -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    messages = [{"role": "user", "content": [text("a"), item(1)]}]
    with pytest.raises(APIError, match="places for 0 images, and the messages have 1"):
        plain.render(messages, RenderOptions(images=PromptImages(GUARD)))


def test_text_before_parts_has_a_blank_line() -> None:
    messages = [{"role": "user", "content": [item(1), text("?")]}]
    options = RenderOptions(images=PromptImages(GUARD), added_text="Answer in JSON.")
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + (
        TEMPLATE
    )
    prompt = ChatTemplate(no_system, {}).render(messages, options)
    assert "user\nAnswer in JSON.\n\n<v>[\x01]</v>?<|im_end|>" in prompt
