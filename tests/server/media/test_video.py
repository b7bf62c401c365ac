"""Videos in requests, from the body to the engine, and back in the usage."""

import base64
import json
import logging
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import VideoOptions
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.openai_schema import validate
from tests.server.bodies import URL, ask, error_of, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.fake_media import (
    CALLED,
    IMAGES,
    MP4,
    SHOWN,
    TEMPLATE,
    VIDEO,
    VIDEO_PLACEHOLDER,
    WATCHED,
    WEBM,
    FakeMediaProcessor,
    audio,
    data_url,
    image,
    mp4,
    png,
    text,
    turn,
    user,
    video,
    wav,
)


@pytest.fixture
def engine(processor: FakeMediaProcessor) -> FakeEngine:
    """Sees, also videos."""
    return FakeEngine(
        model=model_info(images=IMAGES, video=VIDEO),
        tokenizer=ByteTokenizer(chat_template=TEMPLATE),
        media_processor=processor,
    )


def test_videos_and_images_stand_in_their_order(client: TestClient, engine: FakeEngine) -> None:
    """Each piece of a video has the places of its own tokens."""
    messages = [
        user("one ", video(mp4()), " two ", image(png()), video(mp4("b", 2)), VIDEO_PLACEHOLDER),
        {"role": "assistant", "content": "seen"},
        user(video(mp4())),
    ]
    answer = ask(client, messages=messages)
    request = engine.requests[0]
    assert engine.prompt == (
        turn(f"one {WATCHED} two {SHOWN}<m>0\x031\x03</m>[{VIDEO_PLACEHOLDER}]")
        + turn("seen", "assistant")
        + turn(WATCHED)
        + "<|im_start|>assistant\n"
    )
    ids = list(request.prompt_token_ids)
    pieces = [one for one in request.media if one.modality == "video"]
    places = [i for i, other in enumerate(ids) if other == 3]
    assert [one.places for one in pieces] == [((place, 1),) for place in places]
    hashes = [one.content_hash for one in pieces]
    assert (len(set(hashes)), hashes[:3]) == (5, hashes[5:])
    details = answer["usage"]["prompt_tokens_details"]
    assert (details["video_tokens"], details["image_tokens"]) == (8, 2)
    validate("CreateChatCompletionResponse", answer)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": data_url(mp4(), "video/x-anything")},
        {"type": "input_video", "video_url": data_url(mp4())},
        {"type": "file", "file": {"file_data": data_url(mp4(), "video/mp4")}},
    ],
)
def test_other_ways_to_send_a_video(
    client: TestClient, engine: FakeEngine, part: dict[str, Any]
) -> None:
    ask(client, messages=[user(part)])
    assert engine.prompt.startswith(turn(WATCHED))


def test_videos_of_tools(client: TestClient, engine: FakeEngine) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": [text("seen: "), video(mp4())]}
    ask(client, messages=[*CALLED, result])
    assert f"seen: {WATCHED}" in engine.prompt


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (video("data:video/mp4;base64,#"), "invalid_base64_video"),
        (video("data:video/mp4;base64,"), "empty_video_file"),
        (video(png()), "unsupported_video_format"),
        (video(b"#EXTM3U\nfile:///etc/passwd"), "unsupported_video_format"),
        (video(mp4("broken")), "video_parse_error"),
        (video(WEBM + b" broken"), "video_parse_error"),
        (video(mp4("x" * 2000)), "video_file_too_large"),
        (video("https://a.example/x.mp4"), "invalid_video_url"),
        (video("file:///etc/passwd"), "invalid_video_url"),
        (image(data_url(mp4())), "unsupported_image_media_type"),
        ({"type": "file", "file": {"file_data": data_url(wav())}}, "unsupported_parameter"),
        (audio(wav()), "unsupported_parameter"),
    ],
)
def test_errors_name_the_part(
    new_client: ClientFactory, engine: FakeEngine, part: dict[str, Any], code: str
) -> None:
    client = new_client(max_video_size=1000)
    response = post(client, messages=[user("first"), user(video(mp4()), part)])
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (
        400,
        "messages[1].content[1]",
        code,
    )
    assert len(error["message"]) < 300
    assert engine.requests == []


def test_limits_reach_the_processor(
    new_client: ClientFactory, engine: FakeEngine, processor: FakeMediaProcessor
) -> None:
    client = new_client(
        max_videos=1, max_video_frames=2, max_video_seconds=9.0, max_image_pixels=70
    )
    ask(client, messages=[user(video(mp4()))])
    assert engine.prompt.startswith(turn("<m>0\x031\x03</m>"))
    [(_, options)] = processor.calls
    assert options == VideoOptions(
        max_frames=2, max_seconds=9.0, max_pixels=70, max_tokens=engine.model.max_model_len
    )
    error = error_of(post(client, messages=[user(*2 * [video(mp4())])]))
    assert (error["param"], error["code"]) == ("messages", "too_many_videos")
    assert "--max-videos" in error["message"]


def test_videos_do_not_count_to_the_body(new_client: ClientFactory) -> None:
    client = new_client(max_body_size=1000)
    ask(client, messages=[user("x" * 500, video(mp4("x" * 5000)))])


def test_a_model_without_videos_says_so(new_client: ClientFactory, engine: FakeEngine) -> None:
    object.__setattr__(engine.model, "video", None)
    client = new_client()
    error = error_of(post(client, messages=[user("a", video(mp4()))]))
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "unsupported_parameter")
    assert error["message"] == "This model takes no videos."
    object.__setattr__(engine.model, "video_refusal", "av is missing")
    error = error_of(post(client, messages=[user("a", video(mp4()))]))
    assert error["message"] == "This model takes no videos here: av is missing"


def test_models_say_what_they_take(client: TestClient) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert card["input_modalities"] == ["text", "image", "video"]


def test_tokens_are_counted_with_videos(client: TestClient, engine: FakeEngine) -> None:
    messages = [user("a", video(mp4()))]
    num_tokens = ask(client, messages=messages)["usage"]["prompt_tokens"]
    answer = client.post("/tokenize", json={"messages": messages}).json()
    assert answer["count"] == num_tokens
    rendered = client.post(f"{URL}/render", json={"messages": messages}).json()
    assert rendered["token_ids"] == list(engine.requests[0].prompt_token_ids)
    assert WATCHED in rendered["prompt"]


def test_videos_are_neither_kept_nor_logged(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[Any] = []
    caplog.set_level(logging.DEBUG)
    file = MP4 + b"3 " + b"secret" * 100
    secret = base64.b64encode(file).decode()
    app = create_app(Settings(ledger_text=True, log_level="debug"), engine, sinks=[records.append])
    with TestClient(app, "http://127.0.0.1:8000") as client:
        for part in (video(file), video(data_url(b"no video" + file))):
            client.post(URL, json={"messages": [user("hello", part)]})
    assert len(records) == 1
    kept = json.dumps([record.prompt for record in records]) + caplog.text
    assert secret[40:80] not in kept


def test_metrics_count_videos(client: TestClient) -> None:
    files = [mp4("a", 3), mp4("b", 2)]
    ask(client, messages=[user(*map(video, files), image(png()))])
    lines = client.get("/metrics").text.splitlines()
    label = '{model_name="tiny-test"}'
    assert f"stonechat:videos_total{label} 2.0" in lines
    assert f"stonechat:video_bytes_total{label} {sum(map(len, files))}.0" in lines
    assert f"stonechat:video_seconds_total{label} 10.0" in lines
    assert f"stonechat:images_total{label} 1.0" in lines


def test_responses_have_videos_as_files(client: TestClient, engine: FakeEngine) -> None:
    def file(data: bytes) -> dict[str, Any]:
        return {"type": "input_file", "file_data": data_url(data, "video/mp4")}

    body = {"input": [{"role": "user", "content": [file(mp4())]}]}
    first = client.post("/v1/responses", json=body).json()
    body = {"previous_response_id": first["id"], "input": "And then?"}
    assert client.post("/v1/responses", json=body).status_code == 200
    assert [{one.modality for one in request.media} for request in engine.requests] == 2 * [
        {"video"}
    ]
    body = {"input": [{"role": "user", "content": 5 * [file(mp4())]}]}
    response = client.post("/v1/responses", json=body)
    assert (response.status_code, error_of(response)["code"]) == (400, "too_many_videos")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": [user(video(mp4()))]}),
        ("/v1/messages", {"messages": [user(video(mp4()))], "max_tokens": 5}),
    ],
)
def test_other_endpoints_have_none(
    client: TestClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    assert client.post(path, json=body).status_code == 400
    assert engine.requests == []
