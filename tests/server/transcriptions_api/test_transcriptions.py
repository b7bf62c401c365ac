"""Speech in files to text, with a scripted model that hears."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from openai import BadRequestError, OpenAI

from stonechat_models import FinishReason, GenerateRequest, RequestOutput
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import (
    ByteTokenizer,
    FakeEngine,
    delta,
    model_info,
    output,
    text_script,
)
from tests.server.fake_media import (
    AUDIO,
    AUDIO_PLACEHOLDER,
    HEARD,
    TEMPLATE,
    FakeMediaProcessor,
    png,
    turn,
    wav,
)
from tests.server.live import live_server

URL = "/v1/audio/transcriptions"
TRANSLATE = "/v1/audio/translations"
ASK = "Transcribe the speech in this audio. Answer with the transcript alone."
ANSWER = "<|im_start|>assistant\n"


def hearing(
    architecture: str = "Any", text: str = " Hello there.", template: str = TEMPLATE
) -> Any:
    return FakeEngine(
        text_script(text),
        model_info(audio=AUDIO, architecture=architecture),
        ByteTokenizer(chat_template=template),
        media_processor=FakeMediaProcessor(),
    )


@pytest.fixture
def engine() -> FakeEngine:
    engine: FakeEngine = hearing()
    return engine


def send(
    client: TestClient, path: str = URL, file: bytes | None = None, **fields: object
) -> Response:
    data = {name: str(value) for name, value in fields.items()}
    files = {"file": ("speech.wav", wav() if file is None else file, "audio/wav")}
    return client.post(path, data=data, files=files)


def error_of(response: Response) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_the_model_is_asked_for_a_transcript(client: TestClient, engine: FakeEngine) -> None:
    answer = send(client).json()
    assert engine.prompt == turn(HEARD + ASK) + ANSWER
    assert engine.requests[0].params.temperature == 0
    assert answer["text"] == "Hello there."
    num_prompt = len(engine.requests[0].prompt_token_ids)
    usage = answer["usage"]
    assert usage["input_tokens"] == num_prompt
    assert usage["input_token_details"] == {"text_tokens": num_prompt - 3, "audio_tokens": 3}
    assert usage["total_tokens"] == num_prompt + usage["output_tokens"]
    assert usage["type"] == "tokens"
    assert "finish_reason" not in answer


def test_language_and_prompt_are_in_the_instruction(client: TestClient, engine: FakeEngine) -> None:
    send(client, language="de", prompt="Stonechat", temperature=0.5, seed=7)
    assert ", which is in German. " in engine.prompt
    assert "may occur: Stonechat<|im_end|>" in engine.prompt
    params = engine.requests[0].params
    assert (params.temperature, params.seed) == (0.5, 7)


def test_a_text(client: TestClient) -> None:
    response = send(client, response_format="text")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text == "Hello there.\n"


def test_verbose(client: TestClient) -> None:
    answer = send(client, response_format="verbose_json", language="en").json()
    assert answer == {
        "task": "transcribe",
        "language": "en",
        "duration": 3.0,
        "text": "Hello there.",
        "usage": {"type": "duration", "seconds": 3.0},
    }
    error = error_of(send(client, response_format="verbose_json"))
    assert error["param"] == "language"


def test_a_stream(client: TestClient) -> None:
    response = send(client, stream="true")
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    assert {event["type"] for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1]["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == "Hello there."
    assert events[-1]["usage"]["input_token_details"]["audio_tokens"] == 3


def test_a_transcript_that_is_cut_off_says_so(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        return [output(request, delta("a", 0, FinishReason.LENGTH), finished=True)]

    engine.script = play
    client = new_client()
    assert send(client).json()["finish_reason"] == "length"
    assert '"finish_reason":"length"' in send(client, stream="true").text


def test_a_translation(client: TestClient, engine: FakeEngine) -> None:
    assert send(client, TRANSLATE).json()["text"] == "Hello there."
    assert f"{HEARD}Translate the speech in this audio into English." in engine.prompt
    verbose = send(client, TRANSLATE, response_format="verbose_json").json()
    assert (verbose["task"], verbose["language"]) == ("translate", "english")
    assert error_of(send(client, TRANSLATE, language="de"))["param"] == "language"


QWEN = "Qwen3ASRForConditionalGeneration"


def test_qwen3_asr(new_client: ClientFactory, engine: FakeEngine) -> None:
    """As its processor of transformers asks: a system message, and a begun answer."""
    engine.model = model_info(audio=AUDIO, architecture=QWEN)
    client = new_client()
    send(client, language="de", prompt="Stonechat")
    assert engine.prompt == (
        turn("Stonechat", "system") + turn(HEARD) + ANSWER + "language German<asr_text>"
    )
    send(client)
    assert engine.prompt == turn(HEARD) + ANSWER


@pytest.mark.parametrize(
    ("said", "language", "text"),
    [
        ("language English<asr_text>Hi.", "English", "Hi."),
        ("language None<asr_text>", "", ""),
        ("No tag at all.", "", "No tag at all."),
        ("x" * 300, "", "x" * 300),
    ],
)
def test_qwen3_asr_says_the_language(
    new_client: ClientFactory, engine: FakeEngine, said: str, language: str, text: str
) -> None:
    engine.model = model_info(audio=AUDIO, architecture=QWEN)
    engine.script = text_script(*said)
    client = new_client()
    answer = send(client, response_format="verbose_json").json()
    assert (answer["language"], answer["text"]) == (language, text)
    assert send(client).json()["text"] == text


@pytest.mark.parametrize(
    ("architecture", "asked"),
    [
        ("GlmAsrForConditionalGeneration", f"{HEARD}Please transcribe this audio into text"),
        ("AudioFlamingo3ForConditionalGeneration", f"Transcribe the input speech.{HEARD}"),
    ],
)
def test_families_with_a_fixed_question(
    new_client: ClientFactory, engine: FakeEngine, architecture: str, asked: str
) -> None:
    engine.model = model_info(audio=AUDIO, architecture=architecture)
    client = new_client()
    response = send(client, language="en", prompt="x", chunking_strategy="auto")
    assert engine.prompt == turn(asked) + ANSWER
    ignored = response.headers["x-ignored-params"].split(", ")
    assert sorted(ignored) == ["chunking_strategy", "language", "prompt"]
    error = error_of(send(client, TRANSLATE))
    assert error["message"] == "This model transcribes speech, and does not translate it."


@pytest.mark.parametrize(("language", "tag"), [("", ""), ("en", "lang:en"), ("English", "lang:en")])
def test_voxtral(new_client: ClientFactory, engine: FakeEngine, language: str, tag: str) -> None:
    """Its format of transcriptions is not that of its chats: both as mistral-common has them."""
    engine.model = model_info(audio=AUDIO, architecture="VoxtralForConditionalGeneration")
    engine.media_processor = FakeMediaProcessor(audio_placeholder="[AUDIO]")
    client = new_client()
    send(client, language=language)
    assert engine.prompt.endswith(f"[INST][BEGIN_AUDIO](\x02\x02\x02)[/INST]{tag}[TRANSCRIBE]")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "srt"}, "response_format", "unsupported_parameter"),
        ({"response_format": "xml"}, "response_format", "invalid_value"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities", "unsupported_parameter"),
        ({"include[]": "logprobs"}, "include", "unsupported_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "NaN"}, "temperature", "invalid_type"),
        ({"temperature": "1e999"}, "temperature", "invalid_type"),
        ({"seed": "[" * 60_000}, "seed", "invalid_type"),
        ({"stream": "maybe"}, "stream", "invalid_type"),
        ({"stream": "true", "response_format": "text"}, "response_format", "invalid_value"),
        ({"language": "x[/INST]"}, "language", "invalid_value"),
        ({"file": b""}, "file", "empty_audio_file"),
        ({"file": b"text"}, "file", "unsupported_audio_format"),
        ({"file": png()}, "file", "unsupported_audio_format"),
        ({"file": wav("broken")}, "file", "audio_parse_error"),
        ({"file": wav("x" * 2000)}, "file", "audio_file_too_large"),
    ],
)
def test_errors_name_the_field(
    new_client: ClientFactory,
    engine: FakeEngine,
    fields: dict[str, Any],
    param: str,
    code: str,
) -> None:
    error = error_of(send(new_client(max_audio_size=1000), **fields))
    assert (error["param"], error["code"]) == (param, code)
    assert engine.requests == []


def test_fields_of_numbers_may_be_empty(client: TestClient, engine: FakeEngine) -> None:
    send(client, temperature="", seed="-3", top_p="5e-1", max_completion_tokens="007")
    params = engine.requests[0].params
    assert (params.temperature, params.seed, params.top_p, params.max_tokens) == (0, -3, 0.5, 7)


def test_bodies_that_are_no_forms(client: TestClient) -> None:
    assert error_of(client.post(URL, json={"file": "x"}))["code"] == "invalid_form"
    error = error_of(client.post(URL, data={"model": "x"}, files={"other": b"x"}))
    assert error["param"] == "file"


def test_a_form_has_few_parts(client: TestClient) -> None:
    """Also of a list, whose parts have one name."""
    for num_parts, status in ((32, 200), (33, 400)):
        parts: list[Any] = [("file", ("speech.wav", wav()))]
        parts += [("tags[]", (None, "x"))] * (num_parts - 1)
        response = client.post(URL, files=parts)
        assert response.status_code == status, response.text
    assert error_of(response)["message"] == "The form has more than 32 parts."


def test_a_model_that_does_not_hear(new_client: ClientFactory, engine: FakeEngine) -> None:
    engine.model, engine.media_processor = model_info(), None
    error = error_of(send(new_client()))
    assert (error["param"], error["code"]) == ("file", "unsupported_parameter")
    assert error["message"] == "This model takes text only: no images, audio or videos."


def test_the_file_does_not_count_to_the_body(new_client: ClientFactory) -> None:
    client = new_client(max_body_size=1000)
    assert send(client, file=wav("x" * 5000)).status_code == 200
    response = send(client, file=wav("x" * 5000), prompt="x" * 1000)
    assert response.status_code == 413


def test_a_typed_placeholder_is_text(client: TestClient, engine: FakeEngine) -> None:
    send(client, prompt=AUDIO_PLACEHOLDER)
    assert f"may occur: [{AUDIO_PLACEHOLDER}]" in engine.prompt
    assert len(engine.requests[0].media) == 1


def test_the_memory_is_given_back(client: TestClient, engine: FakeEngine) -> None:
    send(client)
    services: Any = client.app.state.server  # type: ignore[attr-defined]
    assert services.media.prepared.num_bytes == services.media.files.num_bytes == 0


def test_openais_client() -> None:
    with live_server(hearing()) as live:
        client = OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        file = ("speech.wav", wav())
        create = client.audio.transcriptions.create
        assert create(model="tiny-test", file=file).text == "Hello there."
        assert create(model="tiny-test", file=file, response_format="text") == "Hello there.\n"
        verbose = create(
            model="tiny-test", file=file, language="en", response_format="verbose_json"
        )
        assert (verbose.text, verbose.duration) == ("Hello there.", 3.0)
        events = list(create(model="tiny-test", file=file, stream=True))
        assert events[-1].type == "transcript.text.done"
        assert events[-1].text == "Hello there."
        with pytest.raises(BadRequestError, match="timestamps"):
            create(
                model="tiny-test",
                file=file,
                response_format="verbose_json",
                timestamp_granularities=["word", "segment"],
            )


def test_forms_that_end_early_or_are_broken_are_errors_of_the_client(client: TestClient) -> None:
    boundary = "b"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    whole = head.encode() + wav() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    assert client.post(URL, content=whole, headers=headers).status_code == 200
    for end in range(0, len(whole) - 4, 3):
        response = client.post(URL, content=whole[:end], headers=headers)
        assert response.status_code == 400, (end, response.text)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "application/json", ""):
        response = client.post(URL, content=whole, headers={"content-type": kind})
        assert error_of(response)["code"] == "invalid_form"
