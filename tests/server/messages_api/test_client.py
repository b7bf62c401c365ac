"""Anthropic's client, unchanged, against a real server."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import beta_tool
from anthropic.types import Message, MessageParam, ModelInfo
from pydantic import BaseModel

from stonechat_models import GenerateRequest
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.live import live_server
from tests.server.messages_api.answers import check_known
from tests.server.messages_api.scripts import TEMPLATE, call, text_script
from tests.server.messages_api.test_answers import WEATHER

MODEL = "tiny-test"
HI: list[MessageParam] = [{"role": "user", "content": "hi"}]


def script(request: GenerateRequest) -> list[Any]:
    """Call the tool if there is one, then answer."""
    prompt = bytes(request.prompt_token_ids).decode()
    if "JSON schema" in prompt:
        return text_script('{"number": 1}')(request)
    if "TOOLS" in prompt and "<|im_start|>tool" not in prompt:
        return text_script("<think>Hm.</think>\nLook." + call("get_weather", city="Rome"))(request)
    return text_script("<think>Hm.</think>\nSunny.")(request)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(
        script, model_info(max_model_len=5_000), ByteTokenizer(chat_template=TEMPLATE)
    )


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with live_server(engine, api_key=["k"], max_body_size=20_000) as live:
        yield live.url


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        yield client


def test_create(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=10, messages=HI)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message._request_id
    check_known(message)


def test_stream(client: anthropic.Anthropic) -> None:
    options: Any = {"type": "enabled", "budget_tokens": 1024}
    with client.messages.stream(
        model=MODEL, max_tokens=10, messages=HI, thinking=options
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "Sunny."
    assert message.content[0].type == "thinking"
    assert message.content[0].thinking == "Hm."
    raw = list(client.messages.create(model=MODEL, max_tokens=10, messages=HI, stream=True))
    assert raw[0].type == "message_start"
    assert raw[-1].type == "message_stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_with_a_tool(client: anthropic.Anthropic, stream: bool) -> None:
    cities = []

    @beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        cities.append(city)
        return "sunny"

    runner: Any = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=100, messages=HI, tools=[get_weather], stream=stream
    )
    final = runner.until_done()
    assert cities == ["Rome"]
    assert final.content[-1].text == "Sunny."


def test_an_answer_with_a_schema(client: anthropic.Anthropic) -> None:
    class Answer(BaseModel):
        number: int

    message = client.messages.parse(model=MODEL, max_tokens=10, messages=HI, output_format=Answer)
    assert message.parsed_output == Answer(number=1)


def test_count_tokens(client: anthropic.Anthropic, engine: FakeEngine) -> None:
    fields: Any = {"model": MODEL, "messages": HI, "tools": [WEATHER], "system": "Be brief."}
    counted = client.messages.count_tokens(**fields)
    usage = client.messages.create(**fields, max_tokens=10).usage
    assert usage.cache_creation_input_tokens == 16
    assert usage.cache_read_input_tokens == 4
    assert counted.input_tokens == usage.input_tokens + 20 == len(engine.prompt)
    assert client.beta.messages.count_tokens(**fields).input_tokens == counted.input_tokens


def test_models(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    check_known(ModelInfo.model_validate(model.model_dump()))
    assert (model.id, model.max_tokens) == (MODEL, 5_000)
    assert client.models.retrieve(MODEL) == model


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "claude-haiku-4-5"}, anthropic.NotFoundError),
        ({"max_tokens": -2}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": "x" * 10_000}]}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, anthropic.RequestTooLargeError),
    ],
)
def test_errors_have_the_client_s_classes(
    client: anthropic.Anthropic, fields: dict[str, Any], error: type[anthropic.APIStatusError]
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as caught:
            client.messages.create(
                **({"model": MODEL, "max_tokens": 10, "messages": HI, "stream": stream} | fields)
            )
        assert caught.value.request_id
        assert caught.value.type
        assert caught.value.error_code


def test_a_wrong_key(url: str) -> None:
    with (
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        client.messages.create(model=MODEL, max_tokens=10, messages=HI)
    assert caught.value.type == "authentication_error"


def test_the_answer_is_a_message(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=10, messages=HI)
    Message.model_validate(json.loads(raw.text()), strict=True)
    assert raw.headers["request-id"]
