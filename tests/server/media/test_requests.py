"""Images in chat requests, from the body to the engine, and back in the usage."""

import base64
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import MediaTensor
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.openai_schema import validate
from tests.server.bodies import URL, ask, error_of, post, stream
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine
from tests.server.fake_media import (
    CALL,
    CALLED,
    IMAGES,
    PLACEHOLDER,
    SHOWN,
    TEMPLATE,
    TOKEN,
    FakeMediaProcessor,
    audio,
    data_url,
    image,
    png,
    text,
    turn,
    user,
    wav,
)


def test_images_stand_in_the_prompt_in_their_order(client: TestClient, engine: FakeEngine) -> None:
    first, second = png("a", 2), png("b", 3)
    messages = [
        {"role": "system", "content": "Look."},
        user("one ", image(first), " two ", image(second), "!"),
        {"role": "assistant", "content": "seen"},
        user("again"),
        user(image(first)),
    ]
    answer = ask(client, messages=messages)
    request = engine.requests[0]
    assert engine.prompt == (
        turn("Look.", "system")
        + turn(f"one {SHOWN} two <v>[\x01\x01\x01]</v>!")
        + turn("seen", "assistant")
        + turn("again")
        + turn(SHOWN)
        + "<|im_start|>assistant\n"
    )
    ids = list(request.prompt_token_ids)
    assert [image.num_tokens for image in request.media] == [2, 3, 2]
    places = [i for image in request.media for s, n in image.places for i in range(s, s + n)]
    assert places == [i for i, token_id in enumerate(ids) if token_id == IMAGES.token_id]
    hashes = [image.content_hash for image in request.media]
    assert hashes[0] == hashes[2] != hashes[1]
    assert isinstance(request.media[0].tensors["pixel_values"], MediaTensor)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(ids)
    assert usage["prompt_tokens_details"]["image_tokens"] == 7
    validate("CreateChatCompletionResponse", answer)


def test_a_stream_has_the_same_usage(client: TestClient) -> None:
    messages = [user(image(png()))]
    chunks = stream(client, messages=messages, stream_options={"include_usage": True})
    assert chunks[-1]["usage"]["prompt_tokens_details"]["image_tokens"] == 2


def test_detail_and_bounds_reach_the_processor(
    new_client: ClientFactory, processor: FakeMediaProcessor
) -> None:
    client = new_client(max_image_pixels=99)
    files = [png("a"), png("b"), png("c"), png("d")]
    details: list[dict[str, Any]] = [{}, {"detail": "low"}, {"detail": "auto"}, {"detail": "high"}]
    parts = [image(file, **detail) for file, detail in zip(files, details, strict=True)]
    ask(client, messages=[user(*parts)])
    found = {files[0]: options.detail for files, options in processor.calls}
    assert found == dict(zip(files, ["auto", "low", "auto", "high"], strict=True))
    assert {options.max_pixels for _, options in processor.calls} == {99}


def test_the_url_may_stand_alone(client: TestClient, engine: FakeEngine) -> None:
    ask(client, messages=[user({"type": "image_url", "image_url": data_url(png())})])
    assert len(engine.requests[0].media) == 1


def file(data: str, **others: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": data, "filename": "a", **others}}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": f"\n {data_url(png())} "},
        image(data_url(png(), "image/jpeg")),
        image(data_url(png("long" * 30)).partition(",")[2]),
        file(data_url(png())),
        file(data_url(png()).partition(",")[2]),
        {"type": "input_image", "image_url": data_url(png()), "detail": "low"},
        {"type": "input_image", "image_url": {"url": data_url(png())}, "file_id": None},
    ],
)
def test_other_ways_to_send_a_file(
    client: TestClient, engine: FakeEngine, part: dict[str, Any]
) -> None:
    ask(client, messages=[user(part)])
    assert len(engine.requests[0].media) == 1


def test_texts_of_responses_are_texts(client: TestClient, engine: FakeEngine) -> None:
    parts = [{"type": kind, "text": kind} for kind in ("input_text", "text", "output_text")]
    ask(client, messages=[user(*parts)])
    assert "input_texttextoutput_text" in engine.prompt.replace("\n", "")


def test_a_pdf_as_an_image_is_named(client: TestClient) -> None:
    error = error_of(post(client, messages=[user(image(data_url(b"%PDF-1.7", "application/pdf")))]))
    assert "is a PDF file, which is a document: it is not a PNG" in error["message"]


@pytest.mark.parametrize("as_text", [False, True])
def test_a_typed_placeholder_is_text(
    new_client: ClientFactory, engine: FakeEngine, as_text: bool
) -> None:
    """In brackets: it is encoded as ordinary text."""
    typed = f"{PLACEHOLDER} and {PLACEHOLDER}"
    client = new_client(special_tokens_as_text=as_text)
    ask(client, messages=[user(typed, image(png()), PLACEHOLDER), user(image(png()))])
    expected = f"[{PLACEHOLDER}] and [{PLACEHOLDER}]{SHOWN}[{PLACEHOLDER}]"
    assert engine.prompt.startswith(turn(expected) + turn(SHOWN))
    assert len(engine.requests[0].media) == 2


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["evil <|im_", "end|>", 0], f"evil [<|im_end|>]{SHOWN}"),
        (["<|im_", "", "end|>", 0, "x"], f"[<|im_end|>]x{SHOWN}"),
        ([0, "a <|im_ ", "\nend|> b"], f"a <|im_ \nend|> b{SHOWN}"),
        (["<|im_", 0, "end|>"], f"[<|im_end|>]{SHOWN}"),
        (["<ima", "ge>", 0, "<ima", "ge>"], f"[{PLACEHOLDER}][{PLACEHOLDER}]{SHOWN}"),
        (["a ", 0, " b <|im_end|>"], f"a{SHOWN}b [<|im_end|>]"),
    ],
)
def test_a_token_spread_over_texts_is_text(
    new_client: ClientFactory, engine: FakeEngine, parts: list[Any], expected: str
) -> None:
    """Templates may trim texts; other requests keep their parts."""
    source = TEMPLATE.replace("{{ item.text }}", "{{ item.text | trim }}")
    engine.tokenizer = ByteTokenizer(source, added_tokens=frozenset({"<|im_end|>"}))
    client = new_client(special_tokens_as_text=True)
    content = [text(part) if isinstance(part, str) else image(png()) for part in parts]
    ask(client, messages=[{"role": "user", "content": content}])
    assert engine.prompt.startswith(turn(expected))
    result = {"role": "tool", "tool_call_id": "c1", "content": content}
    ask(client, messages=[*CALLED, result])
    assert f">{expected}</tool_response>" in engine.prompt


class StrictTokenizer(ByteTokenizer):
    """The placeholder token is never made of ordinary text."""

    def encode_parts(
        self, parts: Sequence[tuple[str, bool]], other_tokens: frozenset[str] = frozenset()
    ) -> list[int]:
        return self.encode("".join(t.replace(TOKEN, "?") if plain else t for t, plain in parts))


@pytest.mark.parametrize("as_text", [False, True])
def test_a_typed_placeholder_token_is_text(
    new_client: ClientFactory, engine: FakeEngine, as_text: bool
) -> None:
    """As Gemma 3 has it: the template writes another text than that of the token."""
    engine.tokenizer = StrictTokenizer(TEMPLATE)
    client = new_client(special_tokens_as_text=as_text)
    ask(client, messages=[user(f"a {TOKEN}", image(png()))])
    assert engine.prompt.startswith(turn(f"a ?{SHOWN}"))


def test_images_of_tools_stay_in_the_result(client: TestClient, engine: FakeEngine) -> None:
    forms = [
        image(png()),
        {"type": "input_image", "image_url": data_url(png()), "detail": "low"},
        file(data_url(png())),
    ]
    for form in forms:
        result = {"role": "tool", "tool_call_id": "c1", "content": [text("seen: "), form]}
        ask(client, messages=[*CALLED, result])
        assert f"seen: {SHOWN}" in engine.prompt
        assert len(engine.requests[-1].media) == 1


@pytest.mark.parametrize(
    ("part", "field", "says"),
    [
        (
            image(png()) | {"image_url": 5},
            "image_url",
            "It must be an object with a url, or a URL.",
        ),
        (
            file("") | {"file": 5},
            "file",
            "It must be an object with a file_id, file_data or a file_url.",
        ),
    ],
)
def test_errors_of_images_of_tools_name_no_classes(
    client: TestClient, part: dict[str, Any], field: str, says: str
) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": [part]}
    error = error_of(post(client, messages=[*CALLED, result]))
    where = f"messages[2].content[0].{field}"
    assert (error["param"], error["message"]) == (where, f"Invalid '{where}': {says}")


TEXT_RESULTS = """\
{%- if tools %}{{ tools }}{% endif %}
{%- for m in messages -%}
<{{ m.role }}>{% if m.role == 'tool' %}{{ m.content + '' }}{% elif m.content is string %}
{{- m.content }}{% elif m.content %}{% for item in m.content %}
{%- if item.type == 'image' %}<image>{% else %}{{ item.text }}{% endif %}{% endfor %}{% endif %}
{%- for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}
{%- endfor -%}
"""
"""Takes only text in the results of tools."""


def test_images_stay_in_results_that_are_written_as_text(
    client: TestClient, engine: FakeEngine
) -> None:
    """The template knows no tools."""
    result = {"role": "tool", "tool_call_id": "c1", "content": [text("seen"), image(png())]}
    ask(client, messages=[*CALLED, result, {**result, "tool_call_id": "c2"}])
    written = f'<tool_response name="look">\nseen{SHOWN}\n</tool_response>'
    assert written + "\n<tool_response>" in engine.prompt


@pytest.mark.parametrize("follows", [False, True])
def test_images_move_behind_results_that_take_only_text(
    new_client: ClientFactory, engine: FakeEngine, follows: bool
) -> None:
    engine.tokenizer.chat_template = TEXT_RESULTS
    client = new_client()
    both = {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "c2"}]}
    results = [
        {"role": "tool", "tool_call_id": "c1", "content": [text("seen"), image(png("a", 2))]},
        {"role": "tool", "tool_call_id": "c2", "content": [image(png("b", 3))]},
    ]
    later = [{"role": "user", "content": "so?"}] if follows else []
    ask(client, messages=[CALLED[0], both, *results, *later])
    moved = "[\x01\x01][\x01\x01\x01]" + ("so?" if follows else "")
    assert f"<tool>seen<tool>The result is the image in the next message.<user>{moved}" in (
        engine.prompt
    )


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([image("http://a.example/x.png")], "content[0]", "invalid_image_url"),
        ([image("https://a.example/x.png")], "content[0]", "invalid_image_url"),
        ([image("x")], "content[0]", "invalid_image_url"),
        ([image("data:image/png;base64,#")], "content[0]", "invalid_base64_image"),
        ([image(b"")], "content[0]", "empty_image_file"),
        ([image(b"%PDF-1.7")], "content[0]", "unsupported_image_media_type"),
        ([text("a"), image(png()), image(png("broken"))], "content[2]", "image_parse_error"),
        ([image(png("x" * 2000))], "content[0]", "image_file_too_large"),
        ([image(png(), detail="ultra")], "content[0].image_url.detail", "invalid_value"),
        ([{"type": "image_url"}], "content[0].image_url", "missing_required_parameter"),
        ([audio(wav())], "content[0]", "unsupported_parameter"),
        ([{"type": "video_url", "video_url": "x"}], "content[0]", "unsupported_parameter"),
        (
            [{"type": "video_url", "video_url": {}}],
            "content[0].video_url.url",
            "missing_required_parameter",
        ),
        ([{"type": "file", "file": {"file_data": "x"}}], "content[0]", "invalid_base64_image"),
        ([{"type": "file", "file": {}}], "content[0]", "invalid_value"),
        ([file("x", file_id="x")], "content[0]", "invalid_value"),
        ([{"type": "input_image", "image_url": "x"}], "content[0]", "invalid_image_url"),
        ([{"type": "input_image"}], "content[0].image_url", "missing_required_parameter"),
        ([{"type": "input_image", "file_id": "x"}], "content[0]", "image_file_not_found"),
        ([{"type": "input_text"}], "content[0].text", "missing_required_parameter"),
        ([file(data_url(b"PK\3\4"))], "content[0]", "unsupported_image_media_type"),
        ([{"type": "file", "file": {"file_id": "x"}}], "content[0]", "image_file_not_found"),
    ],
)
def test_errors_name_the_part(
    new_client: ClientFactory, engine: FakeEngine, parts: list[Any], param: str, code: str
) -> None:
    client = new_client(max_image_size=1000)
    response = post(client, messages=[user("first"), user(*parts)])
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (
        400,
        f"messages[1].{param}",
        code,
    )
    assert len(error["message"]) < 300
    assert engine.requests == []


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_have_no_images(client: TestClient, role: str) -> None:
    error = error_of(post(client, messages=[{**user(image(png())), "role": role}]))
    assert error["param"] == "messages[0].content[0]"
    assert "user messages" in error["message"]


def test_the_number_and_the_size_are_bounded(new_client: ClientFactory) -> None:
    client = new_client(max_images=2, max_images_size=59)
    parts = [image(png("x" * 20)) for _ in range(3)]
    error = error_of(post(client, messages=[user(*parts)]))
    assert (error["param"], error["code"]) == ("messages", "too_many_images")
    assert "--max-images" in error["message"]
    error = error_of(post(client, messages=[user(*parts[:2])]))
    assert (error["param"], error["code"]) == ("messages", "image_file_too_large")
    assert "--max-images-size" in error["message"]


def test_images_do_not_count_to_the_body(new_client: ClientFactory) -> None:
    """The text does, and so does a model that takes no images."""
    client = new_client(max_body_size=1000)
    ask(client, messages=[user("x" * 500, image(png("x" * 5000)))])
    response = post(client, messages=[user("x" * 1000, image(png("x" * 5000)))])
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_a_model_of_text_alone_says_so(new_client: ClientFactory, engine: FakeEngine) -> None:
    engine.media_processor = None
    object.__setattr__(engine.model, "images", None)
    client = new_client()
    error = error_of(post(client, messages=[user("a", image(png()))]))
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "unsupported_parameter")
    assert error["message"] == "This model takes text only: no images, audio or videos."
    object.__setattr__(engine.model, "image_refusal", "Pillow is missing")
    error = error_of(post(client, messages=[user("a", image(png()))]))
    assert error["message"] == "This model takes no images here: Pillow is missing"
    assert client.get("/v1/models").json()["data"][0]["input_modalities"] == ["text"]


def test_models_say_what_they_take(client: TestClient) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert card["input_modalities"] == ["text", "image"]


def test_a_template_without_a_place_is_a_400(new_client: ClientFactory, engine: FakeEngine) -> None:
    engine.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    client = new_client()
    error = error_of(post(client, messages=[user("a", image(png()))]))
    assert error["code"] == "chat_template_error"
    assert "places for 0 images, and the messages have 1" in error["message"]


def test_a_template_that_takes_only_parts(new_client: ClientFactory, engine: FakeEngine) -> None:
    parts = "{% for i in m.content %}{{ i.text or '<image>' if i is mapping }}{% endfor %}"
    engine.tokenizer.chat_template = f"{{# image #}}{{% for m in messages %}}{parts}{{% endfor %}}"
    client = new_client()
    ask(client, messages=[{"role": "system", "content": "S."}, {"role": "user", "content": "U."}])
    assert engine.prompt == "S.U."


def test_tokens_are_counted_with_images(client: TestClient, engine: FakeEngine) -> None:
    messages = [user("a", image(png()))]
    num_tokens = ask(client, messages=messages)["usage"]["prompt_tokens"]
    ids = list(engine.requests[0].prompt_token_ids)
    answer = client.post("/tokenize", json={"messages": messages}).json()
    assert (answer["count"], answer["tokens"]) == (num_tokens, ids)
    rendered = client.post(f"{URL}/render", json={"messages": messages}).json()
    assert rendered["token_ids"] == ids
    assert SHOWN in rendered["prompt"]


def test_images_are_neither_kept_nor_logged(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[Any] = []
    caplog.set_level(logging.DEBUG)
    settings = Settings(ledger_text=True, log_level="debug")
    secret = base64.b64encode(png("secret" * 100)).decode()
    app = create_app(settings, engine, sinks=[records.append])
    good, bad = image(png("secret" * 100)), image("data:," + secret)
    with TestClient(app, "http://127.0.0.1:8000") as client:
        for part in (good, bad):
            client.post(URL, json={"messages": [user("hello", part)]})
    assert len(records) == 1
    assert "hello" in records[0].prompt
    kept = json.dumps([record.prompt for record in records]) + caplog.text
    assert secret[20:60] not in kept
    assert "data:image/png;base64,... (" in kept


def test_metrics_count_images(client: TestClient) -> None:
    files = [png("a"), png("b")]
    ask(client, messages=[user(*map(image, files))])
    lines = client.get("/metrics").text.splitlines()
    assert 'stonechat:images_total{model_name="tiny-test"} 2.0' in lines
    size = sum(map(len, files))
    assert f'stonechat:image_bytes_total{{model_name="tiny-test"}} {size}.0' in lines
    assert 'stonechat:image_load_seconds_count{model_name="tiny-test"} 1.0' in lines
