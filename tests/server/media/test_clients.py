"""Images by OpenAI's and Anthropic's own clients, in each endpoint and in each form."""

import base64
import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from fastapi.testclient import TestClient

from stonechat_server.access.keys_file import add_key
from stonechat_server.app import create_app
from stonechat_server.media.errors import FetchError
from stonechat_server.media.loading import MediaLoader
from stonechat_server.messages_api.blocks import UserMessage
from stonechat_server.messages_api.conversation import to_chat_messages
from stonechat_server.responses_api.items import Message
from stonechat_server.responses_api.messages import to_messages
from stonechat_server.settings import Settings
from tests.openai_schema import validate
from tests.server.batches_api.batch_files import create, line, results, wait_for
from tests.server.bodies import URL, body, error_of
from tests.server.fake_engine import FakeEngine
from tests.server.fake_media import JPEG, SHOWN, FakeMediaProcessor, data_url, image, png, user
from tests.server.messages_api.answers import check_known
from tests.server.storing import NewServer, upload

MODEL = "tiny-test"
BASE64 = base64.b64encode(png()).decode()
SOURCE = {"type": "base64", "media_type": "image/png", "data": BASE64}
BROKEN = {"type": "input_image", "image_url": data_url(png("broken"))}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}


def call_output(*parts: Any) -> Any:
    return {"type": "function_call_output", "call_id": "c1", "output": list(parts)}


@pytest.fixture
def openai_client(server: TestClient) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="any", http_client=server, max_retries=0
    )


@pytest.fixture
def anthropic_client(server: TestClient) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url="http://127.0.0.1:8000", api_key="any", http_client=server, max_retries=0
    )


def test_chat(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    content: Any = [
        {"type": "text", "text": "What is it? "},
        {"type": "image_url", "image_url": {"url": data_url(png()), "detail": "low"}},
    ]
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}]
    )
    assert f"What is it? {SHOWN}<|im_end|>" in engine.prompt
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(engine.requests[0].prompt_token_ids)
    error = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with pytest.raises(openai.BadRequestError) as error_info:
        openai_client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [error]}],  # type: ignore[list-item]
        )
    assert error_info.value.code == "empty_image_file"


def test_responses(
    server: TestClient,
    openai_client: openai.OpenAI,
    engine: FakeEngine,
    processor: FakeMediaProcessor,
) -> None:
    file = openai_client.files.create(file=("a.png", png("c", 4)), purpose="vision")
    items: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look: "},
                {"type": "input_image", "image_url": data_url(png()), "detail": "high"},
            ],
        },
        CALL,
        call_output(
            {"type": "input_text", "text": "seen"},
            {"type": "input_image", "file_id": file.id, "detail": "low"},
        ),
    ]
    answer = openai_client.responses.create(model=MODEL, input=items)
    assert f"Look: {SHOWN}" in engine.prompt
    assert "seen<v>[\x01\x01\x01\x01]</v>\n</tool_response>" in engine.prompt
    assert {options.detail for _, options in processor.calls} == {"high", "low"}
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.model_extra == {"image_tokens": 6}
    validate("Response", json.loads(answer.model_dump_json(exclude_unset=True)))
    kept = server.post("/v1/responses", json={"input": "hi"}).json()
    assert "image_tokens" not in kept["usage"]["input_tokens_details"]


def test_images_of_earlier_turns_come_along(
    server: TestClient, openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    file = openai_client.files.create(file=("a.png", png("c", 4)), purpose="vision")
    url = data_url(png("a" * 30_000))  # long: it counts as an image, and not as text
    first = {"type": "input_image", "image_url": url, "detail": "high"}
    second = {"type": "input_image", "file_id": file.id, "detail": "low"}
    other = {"type": "input_file", "file_data": data_url(png("b", 3)), "filename": "b.png"}
    content = [{"type": "input_text", "text": "Look: "}, first, other]
    items: Any = [{"role": "user", "content": content}]
    answer = openai_client.responses.create(model=MODEL, input=items)
    more: Any = [CALL, call_output(second)]
    answer = openai_client.responses.create(model=MODEL, input=more, previous_response_id=answer.id)
    answer = openai_client.responses.create(
        model=MODEL, input="And?", previous_response_id=answer.id
    )
    assert [image.num_tokens for image in engine.requests[-1].media] == [2, 3, 4]
    assert f"Look: {SHOWN}" in engine.prompt
    listed = list(openai_client.responses.input_items.list(answer.id, order="asc", limit=2))
    assert [item.type for item in listed] == [
        *("message", "message", "function_call", "function_call_output", "message", "message")
    ]
    page = server.get(f"/v1/responses/{answer.id}/input_items?order=asc").json()
    validate("ResponseItemList", page)
    assert page["data"][0]["content"][1:] == [first, other]
    assert page["data"][3]["output"] == [second]
    openai_client.files.delete(file.id)
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.responses.create(model=MODEL, input="And?", previous_response_id=answer.id)
    assert (caught.value.param, caught.value.code) == (
        "previous_response_id",
        "image_file_not_found",
    )


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]}],
            "input[0].content[0]",
            "invalid_image_url",
        ),
        (
            [CALL, call_output({"type": "input_text", "text": "a"}, BROKEN)],
            "input[1].output[1]",
            "image_parse_error",
        ),
        (
            [{"role": "user", "content": [{"type": "input_image"}]}],
            "input[0].content[0]",
            "invalid_value",
        ),
        (
            [{"role": "developer", "content": [{"type": "input_image", "image_url": "x"}]}],
            "input[0].content[0]",
            "unsupported_parameter",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_url": "https://a.b/c"}]}],
            "input[0].content[0]",
            "invalid_image_url",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_data": "UEsDBA=="}]}],
            "input[0].content[0]",
            "unsupported_image_media_type",
        ),
    ],
)
def test_errors_of_responses_have_its_names(
    server: TestClient, given: Any, param: str, code: str
) -> None:
    error = error_of(server.post("/v1/responses", json={"input": given}))
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]


def test_of_a_file_with_space_before_it_little_is_kept() -> None:
    url = "\n " + data_url(png("a" * 3000))
    part = {"type": "input_image", "image_url": url}
    item = Message.model_validate({"type": "message", "role": "user", "content": [part]})
    to_messages(None, [], [item])
    source = {"type": "image", "source": {"type": "url", "url": url}}
    message = UserMessage.model_validate({"role": "user", "content": [source]})
    to_chat_messages(None, [message], {})
    assert len(item.model_dump_json()) < 300 > len(message.model_dump_json())


def test_images_of_messages_that_are_left_out_go_with_them(
    server: TestClient, engine: FakeEngine
) -> None:
    images = [{"type": "input_image", "image_url": data_url(png(name, 3))} for name in "ab"]
    long = {"type": "input_text", "text": "x" * 5000}
    given = [{"role": "user", "content": [long, images[0]]}, {"role": "user", "content": images}]
    answer = server.post("/v1/responses", json={"input": given, "truncation": "auto"}).json()
    assert "x" not in engine.prompt
    assert len(engine.requests[0].media) == 2
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == 6


def test_messages(
    server: TestClient, anthropic_client: anthropic.Anthropic, engine: FakeEngine
) -> None:
    file = upload(server, png("c", 4), purpose="user_data")
    source: Any = {"type": "base64", "media_type": "image/png", "data": BASE64}
    messages: Any = [
        {
            "role": "user",
            "content": [{"type": "image", "source": source}, {"type": "text", "text": "?"}],
        },
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [
                        {"type": "text", "text": "seen"},
                        {"type": "image", "source": {"type": "file", "file_id": file["id"]}},
                    ],
                },
                {"type": "image", "source": {"type": "url", "url": data_url(png())}},
            ],
        },
    ]
    answer = anthropic_client.messages.create(model=MODEL, max_tokens=9, messages=messages)
    check_known(answer)
    prompt = engine.prompt
    assert f"user\n{SHOWN}?<|im_end|>" in prompt
    assert "seen<v>[\x01\x01\x01\x01]</v>\n</tool_response>" in prompt
    assert f"user\n{SHOWN}<|im_end|>" in prompt
    counted = anthropic_client.messages.count_tokens(model=MODEL, messages=messages)
    usage = answer.usage
    num_cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert counted.input_tokens == len(engine.requests[0].prompt_token_ids)
    assert counted.input_tokens == usage.input_tokens + num_cached


def test_the_data_of_a_source_may_be_a_whole_url(server: TestClient, engine: FakeEngine) -> None:
    block = {"type": "image", "source": {**SOURCE, "data": data_url(png())}}
    turns = [{"role": "user", "content": [block]}]
    answer = server.post("/v1/messages", json={"max_tokens": 9, "messages": turns})
    assert answer.status_code == 200
    assert SHOWN in engine.prompt


def test_errors_of_messages_have_their_names(server: TestClient) -> None:
    good = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": BASE64},
    }
    bad = {"type": "image", "source": {"type": "url", "url": "http://a.example"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [good, bad]}
    for blocks, param in (
        ([good, {"type": "text", "text": "a"}, bad], "messages[1].content[2]"),
        ([result], "messages[1].content[0].content[1]"),
    ):
        turns = [{"role": "user", "content": "hi"}, {"role": "user", "content": blocks}]
        answer = server.post("/v1/messages", json={"max_tokens": 9, "messages": turns})
        details = answer.json()["error"]["details"]
        assert details == {"error_code": "invalid_image_url", "param": param}


def test_an_error_result_keeps_its_image(server: TestClient, engine: FakeEngine) -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": "t",
        "is_error": True,
        "content": [{"type": "text", "text": "no"}, {"type": "image", "source": SOURCE}],
    }
    turns = [{"role": "user", "content": "hi"}, {"role": "user", "content": [result]}]
    answer = server.post("/v1/messages", json={"max_tokens": 9, "messages": turns})
    assert answer.status_code == 200, answer.text
    assert f"Error: no{SHOWN}" in engine.prompt


def test_files_of_a_key_are_its_own(new_server: NewServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    alice, bob = ({"authorization": f"Bearer {add_key(keys, name)}"} for name in ("alice", "bob"))
    server = new_server(keys_file=keys, max_image_size=100)

    def keep(content: bytes, purpose: str = "vision") -> str:
        files = {"file": ("a.png", content)}
        answer = server.post("/v1/files", data={"purpose": purpose}, files=files, headers=alice)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def use(file_id: str, headers: dict[str, str]) -> Any:
        message = user("a", {"type": "file", "file": {"file_id": file_id}})
        return server.post(URL, json=body(messages=[message]), headers=headers)

    file_id = keep(png())
    assert use(file_id, alice).status_code == 200
    for other, headers, code in (
        (file_id, bob, "image_file_not_found"),
        ("file-none", alice, "image_file_not_found"),
        ("../keys.toml", alice, "image_file_not_found"),
        (keep(png(), "batch"), alice, "invalid_image"),
        (keep(b"PK\3\4"), alice, "unsupported_image_media_type"),
        (keep(b""), alice, "empty_image_file"),
        (keep(png("x" * 200)), alice, "image_file_too_large"),
        (keep(JPEG), alice, None),
    ):
        response = use(other, headers)
        if code is None:
            continue
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, code)
        assert error["param"] == "messages[0].content[1]"


def test_images_are_kept_until_they_are_deleted(server: TestClient) -> None:
    for purpose in ("vision", "user_data"):
        file = upload(server, png(), purpose=purpose)
        assert (file["purpose"], "expires_at" in file) == (purpose, False)
        validate("OpenAIFile", file)
    assert "expires_at" in upload(server)


class Web:
    """Answers for the network."""

    def __init__(self) -> None:
        self.urls: list[Any] = []

    async def get(self, url: Any, max_bytes: int) -> bytes | str:
        self.urls.append(url)
        if url.target == "/none":
            raise FetchError("could not be fetched: its host answered 404")
        return png()


def test_urls_of_allowed_hosts(new_server: NewServer, engine: FakeEngine) -> None:
    server, web = new_server(), Web()
    settings = Settings(allow_image_urls=["a.example"])
    services = server.app.state.server  # type: ignore[attr-defined]
    services.media = MediaLoader(settings, services.metrics.media.loaded, web)
    urls = ["https://a.example/1", "https://a.example/2"]
    answer = server.post(URL, json=body(messages=[user(*map(image, urls))]))
    assert answer.status_code == 200, answer.text
    assert [url.target for url in web.urls] == ["/1", "/2"]
    assert engine.prompt.count(SHOWN) == 2
    error = error_of(server.post(URL, json=body(messages=[user(image("https://a.example/none"))])))
    assert error["code"] == "failed_to_download_image"
    assert error["message"].endswith("the image could not be fetched: its host answered 404.")
    error = error_of(server.post(URL, json=body(messages=[user(image("https://b.example/"))])))
    assert error["code"] == "invalid_image_url"
    assert "b.example" in error["message"]


def test_batches_have_images_beyond_the_size_of_a_body(
    new_server: NewServer, engine: FakeEngine
) -> None:
    server = new_server(max_body_size=2000)
    lines = [
        line("a", messages=[user("I am a.", image(png("x" * 5000)))]),
        line("b", messages=[user("I am b.", image("https://a.example"))]),
    ]
    output, errors = results(server, wait_for(server, create(server, lines)))
    assert (set(output), set(errors)) == ({"a"}, {"b"})
    assert errors["b"]["response"]["body"]["error"]["param"] == "messages[0].content[1]"
    usage = output["a"]["response"]["body"]["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] == 2
    assert len(engine.requests[0].media) == 1


def test_a_server_without_files_says_so(engine: FakeEngine) -> None:
    with TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000") as client:
        part = {"type": "file", "file": {"file_id": "file-1"}}
        error = error_of(client.post(URL, json=body(messages=[user(part)])))
    assert error["code"] == "image_file_not_found"
    assert "--files-dir" in error["message"]
