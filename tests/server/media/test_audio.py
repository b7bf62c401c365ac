"""Audio in requests, from the body to the engine, and back in the usage."""

import base64
import json
import logging
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.app import create_app
from stonechat_server.media.loading import MediaLoader
from stonechat_server.settings import Settings
from tests.openai_schema import validate
from tests.server.batches_api.batch_files import create, line, results, wait_for
from tests.server.bodies import URL, ask, error_of, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.fake_media import (
    AUDIO,
    AUDIO_PLACEHOLDER,
    CALLED,
    HEARD,
    IMAGES,
    PLACEHOLDER,
    SHOWN,
    TEMPLATE,
    FakeMediaProcessor,
    audio,
    audio_url,
    data_url,
    image,
    png,
    text,
    turn,
    user,
    wav,
)
from tests.server.storing import NewServer, upload

MP3 = (b"\xff\xfb\x90\x00", b"ID3\x04\x00")


@pytest.fixture
def engine(processor: FakeMediaProcessor) -> FakeEngine:
    """Sees and hears."""
    return FakeEngine(
        model=model_info(images=IMAGES, audio=AUDIO),
        tokenizer=ByteTokenizer(chat_template=TEMPLATE),
        media_processor=processor,
    )


def test_audio_and_images_stand_in_their_order(client: TestClient, engine: FakeEngine) -> None:
    first, second = wav("a", 3), wav("b", 2)
    messages = [
        user("one ", audio(first), " two ", image(png()), audio_url(second), "!"),
        {"role": "assistant", "content": "heard"},
        user(audio(first)),
    ]
    answer = ask(client, messages=messages)
    request = engine.requests[0]
    assert engine.prompt == (
        turn(f"one {HEARD} two {SHOWN}<a>(\x02\x02)</a>!")
        + turn("heard", "assistant")
        + turn(HEARD)
        + "<|im_start|>assistant\n"
    )
    ids = list(request.prompt_token_ids)
    for modality, token_id, sizes in (("audio", 2, [3, 2, 3]), ("image", 1, [2])):
        media = [one for one in request.media if one.modality == modality]
        assert [one.num_tokens for one in media] == sizes
        places = [i for one in media for s, n in one.places for i in range(s, s + n)]
        assert places == [i for i, other in enumerate(ids) if other == token_id]
    details = answer["usage"]["prompt_tokens_details"]
    assert (details["audio_tokens"], details["image_tokens"]) == (8, 2)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    validate("CreateChatCompletionResponse", answer)


@pytest.mark.parametrize("start", [*MP3, b"fLaC", b"OggS", b"RIFF....WAVE"])
@pytest.mark.parametrize("format", ["wav", "mp3", "flac", "ogg", "opus"])
def test_what_a_file_holds_counts(start: bytes, format: str, new_client: ClientFactory) -> None:
    """And not what the request calls it: the processor refuses the file, which is broken."""
    client = new_client()
    error = error_of(post(client, messages=[user(audio(start + b" broken", format))]))
    assert error["code"] == "audio_parse_error"


def test_the_url_may_stand_alone(client: TestClient, engine: FakeEngine) -> None:
    part = {"type": "audio_url", "audio_url": data_url(wav(), "audio/x-anything")}
    ask(client, messages=[user(part)])
    assert engine.prompt.startswith(turn(HEARD))


@pytest.mark.parametrize("as_text", [False, True])
def test_typed_placeholders_are_text(
    new_client: ClientFactory, engine: FakeEngine, as_text: bool
) -> None:
    """In brackets: it is encoded as ordinary text."""
    client = new_client(special_tokens_as_text=as_text)
    typed = f"{AUDIO_PLACEHOLDER} {PLACEHOLDER}"
    ask(client, messages=[user(typed, audio(wav()), image(png()))])
    assert engine.prompt.startswith(turn(f"[{AUDIO_PLACEHOLDER}] [{PLACEHOLDER}]{HEARD}{SHOWN}"))


@pytest.mark.parametrize(
    "part",
    [
        audio(data_url(wav(), "audio/wav")),
        audio(wav(), "webm"),
        {"type": "input_audio", "input_audio": {"data": audio(wav())["input_audio"]["data"]}},
        {"type": "file", "file": {"file_data": data_url(wav(), "audio/mpeg"), "filename": "a.mp3"}},
    ],
)
def test_other_ways_to_send_audio(
    client: TestClient, engine: FakeEngine, part: dict[str, Any]
) -> None:
    ask(client, messages=[user(part)])
    assert [one.modality for one in engine.requests[0].media] == ["audio"]


AUDIO_FILE = {"type": "file", "file": {"file_data": data_url(wav(), "audio/wav")}}


@pytest.mark.parametrize("form", [audio(wav()), audio_url(wav()), AUDIO_FILE])
def test_audio_of_tools(client: TestClient, engine: FakeEngine, form: dict[str, Any]) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": [text("heard: "), form]}
    ask(client, messages=[*CALLED, result])
    assert f"heard: {HEARD}" in engine.prompt


def test_audio_of_tools_moves_behind_results_of_text(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'tool' %}{{ m.content + '' }}"
        "{% elif m.content is string %}{{ m.content }}{% else %}"
        "{% for i in m.content %}<{{ i.type }}>{% endfor %}{% endif %}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ tools }}{% endfor %}{% endfor %}"
    )
    client = new_client()
    result = {"role": "tool", "tool_call_id": "c1", "content": [audio(wav())]}
    ask(client, messages=[*CALLED, result])
    assert "<tool>The result is the audio in the next message.<user>(\x02" in engine.prompt


def test_a_template_of_texts_gets_the_placeholder(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    """Some models are prompted so."""
    engine.tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    )
    client = new_client()
    typed = f"say {AUDIO_PLACEHOLDER}"
    ask(client, messages=[user("a", audio(wav()), typed, audio(wav("b", 1)), "b"), user("c")])
    assert engine.prompt == (f"<user>a(\x02\x02\x02)say [{AUDIO_PLACEHOLDER}](\x02)b<user>c")
    assert [one.num_tokens for one in engine.requests[0].media] == [3, 1]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (audio("#"), "invalid_base64_audio"),
        (audio(""), "empty_audio_file"),
        (audio(b"\x00\x01\x02"), "unsupported_audio_format"),
        (audio(png()), "unsupported_audio_format"),
        (audio(b"\xff\xf1\x50\x80"), "unsupported_audio_format"),  # AAC
        (audio(wav("broken")), "audio_parse_error"),
        (audio(wav("long", 99)), "audio_too_long"),
        (audio(wav("x" * 2000)), "audio_file_too_large"),
        (audio_url(wav("x" * 2000)), "audio_file_too_large"),
        (audio_url("http://a.example/x.wav"), "invalid_audio_url"),
        (audio_url("https://a.example/x.wav"), "invalid_audio_url"),
        (audio_url(data_url(png(), "audio/wav")), "unsupported_audio_format"),
        (image(data_url(wav())), "unsupported_image_media_type"),
        ({"type": "file", "file": {"file_data": "x"}}, "invalid_base64_image"),
    ],
)
def test_errors_name_the_part(
    new_client: ClientFactory, engine: FakeEngine, part: dict[str, Any], code: str
) -> None:
    client = new_client(max_audio_size=1000, max_audio_seconds=50.0)
    response = post(client, messages=[user("first"), user(audio(wav()), part)])
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (
        400,
        "messages[1].content[1]",
        code,
    )
    assert len(error["message"]) < 300
    assert engine.requests == []


@pytest.mark.parametrize(
    ("given", "where", "says"),
    [
        ({}, "input_audio.data", "Missing"),
        ({"data": "", "format": 5}, "input_audio.format", "string"),
        ({"data": 5, "format": "wav"}, "input_audio.data", "string"),
    ],
)
def test_parts_that_are_not_well_made(
    client: TestClient, given: dict[str, Any], where: str, says: str
) -> None:
    part = {"type": "input_audio", "input_audio": given}
    error = error_of(post(client, messages=[user(part)]))
    assert error["param"] == f"messages[0].content[0].{where}"
    assert says in error["message"]
    result = {"role": "tool", "tool_call_id": "c1", "content": [part]}
    error = error_of(post(client, messages=[*CALLED, result]))
    assert error["param"] == f"messages[2].content[0].{where}"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_have_no_audio(client: TestClient, role: str) -> None:
    error = error_of(post(client, messages=[{**user(audio(wav())), "role": role}]))
    assert error["param"] == "messages[0].content[0]"
    assert "user messages" in error["message"]


def test_the_number_and_the_size_are_bounded(new_client: ClientFactory) -> None:
    client = new_client(max_audio_clips=2, max_images_size=70)
    parts = [audio(wav("x" * 20)) for _ in range(3)]
    error = error_of(post(client, messages=[user(*parts)]))
    assert (error["param"], error["code"]) == ("messages", "too_many_audio_clips")
    assert "--max-audio-clips" in error["message"]
    error = error_of(post(client, messages=[user(*parts[:2], image(png("x" * 20)))]))
    assert (error["param"], error["code"]) == ("messages", "image_file_too_large")
    assert "--max-images-size" in error["message"]


def test_audio_does_not_count_to_the_body(new_client: ClientFactory) -> None:
    client = new_client(max_body_size=1000)
    ask(client, messages=[user("x" * 500, audio(wav("x" * 5000)))])
    response = post(client, messages=[user("x" * 1000, audio(wav("x" * 5000)))])
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_a_model_that_does_not_hear_says_so(new_client: ClientFactory, engine: FakeEngine) -> None:
    object.__setattr__(engine.model, "audio", None)
    client = new_client()
    ask(client, messages=[user(image(png()))])
    error = error_of(post(client, messages=[user("a", audio(wav()))]))
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "unsupported_parameter")
    assert error["message"] == "This model takes no audio."
    object.__setattr__(engine.model, "audio_refusal", "soundfile is missing")
    error = error_of(post(client, messages=[user("a", audio(wav()))]))
    assert error["message"] == "This model takes no audio here: soundfile is missing"


def test_a_model_that_only_hears(new_client: ClientFactory, engine: FakeEngine) -> None:
    object.__setattr__(engine.model, "images", None)
    client = new_client()
    ask(client, messages=[user(audio(wav()))])
    assert client.get("/v1/models").json()["data"][0]["input_modalities"] == ["text", "audio"]
    error = error_of(post(client, messages=[user(image(png()))]))
    assert error["message"] == "This model takes no images."


def test_models_say_what_they_take(client: TestClient) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert card["input_modalities"] == ["text", "image", "audio"]


def test_tokens_are_counted_with_audio(client: TestClient, engine: FakeEngine) -> None:
    messages = [user("a", audio(wav()))]
    num_tokens = ask(client, messages=messages)["usage"]["prompt_tokens"]
    ids = list(engine.requests[0].prompt_token_ids)
    answer = client.post("/tokenize", json={"messages": messages}).json()
    assert (answer["count"], answer["tokens"]) == (num_tokens, ids)
    rendered = client.post(f"{URL}/render", json={"messages": messages}).json()
    assert rendered["token_ids"] == ids
    assert HEARD in rendered["prompt"]


def test_audio_is_neither_kept_nor_logged(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[Any] = []
    caplog.set_level(logging.DEBUG)
    file = wav("secret" * 100)
    secret = base64.b64encode(file).decode()
    settings = Settings(ledger_text=True, log_level="debug")
    app = create_app(settings, engine, sinks=[records.append])
    with TestClient(app, "http://127.0.0.1:8000") as client:
        for part in (audio(file), audio_url(file), audio(b"no audio" + file)):
            client.post(URL, json={"messages": [user("hello", part)]})
        given = [{"role": "user", "content": [audio(file)]}]
        client.post("/v1/responses", json={"input": given, "store": False})
    assert len(records) == 3
    kept = json.dumps([record.prompt for record in records]) + caplog.text
    assert secret[40:80] not in kept
    assert f"... ({len(secret)} characters)" in kept


def test_metrics_count_audio(client: TestClient) -> None:
    files = [wav("a", 3), wav("b", 2)]
    ask(client, messages=[user(*map(audio, files), image(png()))])
    lines = client.get("/metrics").text.splitlines()
    label = '{model_name="tiny-test"}'
    assert f"stonechat:audio_clips_total{label} 2.0" in lines
    assert f"stonechat:audio_bytes_total{label} {sum(map(len, files))}.0" in lines
    assert f"stonechat:audio_seconds_total{label} 5.0" in lines
    assert f"stonechat:audio_load_seconds_count{label} 1.0" in lines
    assert f"stonechat:images_total{label} 1.0" in lines


def test_responses(client: TestClient, engine: FakeEngine) -> None:
    content = [{"type": "input_text", "text": "What is said?"}, audio(wav())]
    answer = client.post(
        "/v1/responses", json={"input": [{"role": "user", "content": content}]}
    ).json()
    assert engine.prompt.startswith(turn(f"What is said?{HEARD}"))
    assert answer["usage"]["input_tokens_details"]["audio_tokens"] == 3
    assert "image_tokens" not in answer["usage"]["input_tokens_details"]
    more = {"previous_response_id": answer["id"], "input": "And then?"}
    assert client.post("/v1/responses", json=more).status_code == 200
    assert engine.prompt.startswith(turn(f"What is said?{HEARD}"))
    items = client.get(f"/v1/responses/{answer['id']}/input_items").json()["data"]
    assert items[0]["content"][1] == audio(wav())


@pytest.mark.parametrize(
    ("item", "param", "code"),
    [
        ({"role": "user", "content": [audio("#")]}, "content[0]", "invalid_base64_audio"),
        ({"role": "system", "content": [audio(wav())]}, "content[0]", "unsupported_parameter"),
        ({"role": "user", "content": [audio_url(wav())]}, "content[0]", "unsupported_parameter"),
    ],
)
def test_errors_of_responses_have_its_names(
    client: TestClient, item: dict[str, Any], param: str, code: str
) -> None:
    error = error_of(client.post("/v1/responses", json={"input": [item]}))
    assert (error["param"], error["code"]) == (f"input[0].{param}", code)


@pytest.mark.parametrize("where", ["user", "tool_result"])
def test_messages_have_no_audio(client: TestClient, where: str) -> None:
    content: list[Any] = [audio(wav())]
    if where == "tool_result":
        content = [{"type": "tool_result", "tool_use_id": "c1", "content": content}]
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": content}]}
    response = client.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert "/v1/chat/completions" in response.json()["error"]["message"]


def test_voxtral_has_a_template_though_its_folder_has_none(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    """Without a space or a line break between parts, as mistral-common writes them."""
    engine.model = model_info(audio=AUDIO, architecture="VoxtralForConditionalGeneration")
    engine.tokenizer = ByteTokenizer(None)
    engine.media_processor = FakeMediaProcessor(audio_placeholder="[AUDIO]")
    client = new_client()
    messages = [
        {"role": "system", "content": "Be short."},
        user(audio(wav()), "Who speaks?", audio(wav("b", 1))),
        {"role": "assistant", "content": "Ann."},
        {"role": "user", "content": "Sure?"},
    ]
    ask(client, messages=messages)
    assert engine.prompt == (
        "[SYSTEM_PROMPT]Be short.[/SYSTEM_PROMPT]"
        "[INST][BEGIN_AUDIO](\x02\x02\x02)Who speaks?[BEGIN_AUDIO](\x02)[/INST]"
        "Ann.<|im_end|>[INST]Sure?[/INST]"
    )


def part_of(file_id: str) -> dict[str, Any]:
    return {"type": "file", "file": {"file_id": file_id}}


def test_files_by_id_are_what_they_hold(server: TestClient, engine: FakeEngine) -> None:
    sound = upload(server, wav(), purpose="user_data")["id"]
    picture = upload(server, png(), purpose="vision")["id"]
    other = upload(server, b"PK\3\4", purpose="user_data")["id"]
    answer = ask(server, messages=[user("a", part_of(sound), part_of(picture))])
    assert engine.prompt.startswith(turn(f"a{HEARD}{SHOWN}"))
    details = answer["usage"]["prompt_tokens_details"]
    assert (details["audio_tokens"], details["image_tokens"]) == (3, 2)
    error = error_of(post(server, messages=[user("a", part_of(other))]))
    assert (error["param"], error["code"]) == (
        "messages[0].content[1]",
        "unsupported_image_media_type",
    )
    assert "not a WAV, MP3, FLAC or Ogg file" in error["message"]
    given = [{"role": "user", "content": [{"type": "input_image", "file_id": sound}]}]
    error = error_of(server.post("/v1/responses", json={"input": given}))
    assert error["code"] == "unsupported_image_media_type"


@pytest.mark.parametrize("kind", ["images", "audio"])
def test_a_file_by_id_for_a_model_of_one_kind(
    new_server: NewServer, engine: FakeEngine, kind: str
) -> None:
    """The error speaks of what the model takes."""
    object.__setattr__(engine.model, "audio" if kind == "images" else "images", None)
    server = new_server(max_image_size=100, max_audio_size=50)
    file_id = upload(server, b"neither\0", purpose="user_data")["id"]
    error = error_of(post(server, messages=[user(part_of(file_id))]))
    assert ("the image is not a PNG, JPEG, WebP or GIF file, not a PDF" in error["message"]) == (
        kind == "images"
    )
    assert ("the audio is not a WAV, MP3, FLAC or Ogg file, not a PDF" in error["message"]) == (
        kind == "audio"
    )
    large = upload(server, (png if kind == "images" else wav)("x" * 70), purpose="user_data")["id"]
    response = post(server, messages=[user(part_of(large))])
    assert response.status_code == (200 if kind == "images" else 400)


def test_clips_by_id_count_as_clips(new_server: NewServer) -> None:
    server = new_server(max_audio_clips=1)
    file_id = upload(server, wav(), purpose="user_data")["id"]
    error = error_of(post(server, messages=[user(part_of(file_id), audio(wav()))]))
    assert error["code"] == "too_many_audio_clips"


class Web:
    """Holds one clip."""

    def __init__(self) -> None:
        self.limits: list[int] = []

    async def get(self, url: Any, max_bytes: int) -> bytes | str:
        self.limits.append(max_bytes)
        return wav() if url.target == "/a.wav" else "https://127.0.0.1/inside"


def test_urls_of_allowed_hosts(new_server: NewServer, engine: FakeEngine) -> None:
    """By the rules of images, and within the size of audio."""
    server, web = new_server(), Web()
    settings = Settings(allow_image_urls=["a.example"], max_audio_size=77)
    services: Any = server.app.state.server  # type: ignore[attr-defined]
    services.media = MediaLoader(settings, services.metrics.media.loaded, web)
    ask(server, messages=[user(audio_url("https://a.example/a.wav"))])
    assert engine.prompt.startswith(turn(HEARD))
    assert web.limits == [77]
    for url in ("https://a.example/moved", "https://b.example/a.wav", "https://10.0.0.1/a.wav"):
        error = error_of(post(server, messages=[user(audio_url(url))]))
        assert error["code"] == "invalid_audio_url"


def test_batches_have_audio(new_server: NewServer, engine: FakeEngine) -> None:
    server = new_server(max_body_size=2000)
    lines = [
        line("a", messages=[user("I am a.", audio(wav("x" * 5000)))]),
        line("b", messages=[user("I am b.", audio("#"))]),
    ]
    output, errors = results(server, wait_for(server, create(server, lines)))
    assert (set(output), set(errors)) == ({"a"}, {"b"})
    assert errors["b"]["response"]["body"]["error"]["code"] == "invalid_base64_audio"
    usage = output["a"]["response"]["body"]["usage"]
    assert usage["prompt_tokens_details"]["audio_tokens"] == 3
