"""What a request becomes: the same prompt and parameters as the equal chat request."""

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import SamplingDefaults
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.app import create_app
from stonechat_server.ollama_api.fields import FIELDS, OPTIONS
from stonechat_server.ollama_api.reading import MessageReader
from stonechat_server.ollama_api.request import (
    Message,
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    Options,
)
from stonechat_server.schema.fields import FieldStatus
from stonechat_server.schema.messages import ToolMessage
from stonechat_server.settings import Settings
from tests.server import bodies as chat
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info, text_script
from tests.server.fake_media import (
    AUDIO,
    IMAGES,
    FakeMediaProcessor,
    audio,
    image,
    png,
    seeing_engine,
    user,
    wav,
)
from tests.server.fake_media import TEMPLATE as MEDIA_TEMPLATE
from tests.server.ollama_api.conftest import USER, ask, error

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def calls(*arguments: dict[str, Any], **fields: Any) -> dict[str, Any]:
    made = [{"function": {"name": "add", "arguments": each}} | fields for each in arguments]
    return {"role": "assistant", "content": "", "tool_calls": made}


def chat_calls(*pairs: tuple[str, str]) -> dict[str, Any]:
    made = [
        {"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}}
        for id, arguments in pairs
    ]
    return {"role": "assistant", "tool_calls": made}


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "roles": (
        [{"role": "system", "content": "Be brief."}, USER],
        [{"role": "system", "content": "Be brief."}, USER],
    ),
    "no content": ([USER, {"role": "assistant"}], [USER, {"role": "assistant", "content": ""}]),
    "thinking": (
        [USER, {"role": "assistant", "content": "a", "thinking": "b"}, USER],
        [USER, {"role": "assistant", "content": "a", "reasoning_content": "b"}, USER],
    ),
    "results by order": (
        [
            USER,
            calls({"a": 1}, {"a": 2}),
            {"role": "tool", "content": "one"},
            {"role": "tool", "tool_name": "add", "content": "two"},
        ],
        [
            USER,
            chat_calls(("call_1", '{"a": 1}'), ("call_2", '{"a": 2}')),
            {"role": "tool", "tool_call_id": "call_1", "content": "one"},
            {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        ],
    ),
    "results by id": (
        [
            USER,
            calls({"a": 1}, id="x"),
            {"role": "tool", "tool_call_id": "x", "content": "one"},
            calls({}),
            {"role": "tool", "tool_call_id": "another client's", "content": "two"},
        ],
        [
            USER,
            chat_calls(("x", '{"a": 1}')),
            {"role": "tool", "tool_call_id": "x", "content": "one"},
            chat_calls(("call_2", "{}")),
            {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        ],
    ),
    "equal ids": (
        [
            USER,
            calls({"a": 1}, {"a": 2}, id="x") | {"content": "Sure."},
            {"role": "tool", "tool_call_id": "x", "content": "one"},
            {"role": "tool", "tool_call_id": "x", "content": "two"},
        ],
        [
            USER,
            chat_calls(("x", '{"a": 1}'), ("x", '{"a": 2}')) | {"content": "Sure."},
            {"role": "tool", "tool_call_id": "x", "content": "one"},
            {"role": "tool", "tool_call_id": "x", "content": "two"},
        ],
    ),
    "no arguments": (
        [
            USER,
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": None}}]},
            USER,
        ],
        [USER, chat_calls(("call_1", "{}")), USER],
    ),
    "a result of no call": (
        [USER, {"role": "tool", "tool_name": "add", "content": "7"}],
        [USER, {"role": "tool", "tool_call_id": "", "content": "7"}],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_renders_like_the_equal_chat(
    client: TestClient, engine: FakeEngine, name: str
) -> None:
    messages, chat_messages = CONVERSATIONS[name]
    ask(client, messages=messages, tools=[ADD])
    prompt = engine.prompt
    chat.ask(client, messages=chat_messages, tools=[ADD])
    assert prompt == engine.prompt


def test_many_results_find_their_calls_at_once() -> None:
    """Each result is compared with few calls: the event loop waits for all of them."""
    num_compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal num_compared
            num_compared += 1
            return str(self) == other

    made = [{"id": f"c{i}", "function": {"name": f"n{i % 2}", "arguments": {}}} for i in range(200)]
    for fields in ({"tool_name": "n1"}, {"tool_name": "other"}, {"tool_call_id": "other"}, {}):
        results = [Message.model_construct(role="tool", content=str(i)) for i in range(200)]
        for result in results:
            for name, value in fields.items():
                setattr(result, name, Name(value))
        answer = Message.model_validate({"role": "assistant", "tool_calls": made})
        num_compared = 0
        read = MessageReader("").read([answer, *results])
        assert num_compared <= 10 * len(results)
        ids = [message.tool_call_id for message in read[1:] if isinstance(message, ToolMessage)]
        n1 = [f"c{i}" for i in range(1, 200, 2)]
        every = [f"c{i}" for i in range(200)]
        wanted = {"n1": [*n1, *[""] * 100], "other": [""] * 200}.get(fields.get("tool_name", ""))
        assert ids == (every if wanted is None else wanted)


def test_the_last_answer_is_continued(client: TestClient, engine: FakeEngine) -> None:
    ask(client, messages=[USER, {"role": "assistant", "content": "It is ("}])
    assert engine.prompt.endswith("<|im_start|>assistant\nIt is (")


def test_a_prompt_is_a_message(client: TestClient, engine: FakeEngine) -> None:
    ask(client, "/api/generate", prompt="hi", system="Be brief.")
    prompt = engine.prompt
    chat.ask(client, messages=[{"role": "system", "content": "Be brief."}, USER])
    assert prompt == engine.prompt


def test_a_raw_prompt_is_a_text(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, "/api/generate", prompt="Once", raw=True)
    assert engine.prompt == "Once"
    assert answer["response"] == "Hello wörld 👋"
    limit = engine.requests[-1].params.max_tokens
    assert limit == engine.model.max_model_len - 4
    ask(client, "/api/generate", prompt="Once", raw=True, options={"num_predict": 3})
    assert engine.requests[-1].params.max_tokens == 3


def test_a_suffix_is_what_follows(engine: FakeEngine) -> None:
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    engine.tokenizer = ByteTokenizer(added_tokens=frozenset(marks))
    with TestClient(create_app(Settings(), engine), "http://localhost") as client:
        ask(client, "/api/generate", prompt="def f(", suffix="return 1")
        assert engine.prompt == "<|fim_prefix|>[def f(]<|fim_suffix|>[return 1]<|fim_middle|>"
        assert client.post("/api/show", json={}).json()["capabilities"] == ["completion", "insert"]


def test_without_tokens_for_it_a_suffix_is_refused(client: TestClient) -> None:
    assert "suffix" in error(client, "/api/generate", prompt="a", suffix="b")


@pytest.mark.parametrize("name", ["system", "images"])
def test_what_a_raw_prompt_cannot_have(client: TestClient, name: str) -> None:
    value = ["AAAA"] if name == "images" else "x"
    text = error(client, "/api/generate", prompt="a", raw=True, **{name: value})
    assert text == f"'{name}' and 'raw' cannot both be given."


def test_options_reach_the_engine(client: TestClient, engine: FakeEngine) -> None:
    options = {
        **{"temperature": 0.5, "top_k": 12, "top_p": 0.7, "min_p": 0.1, "seed": 3},
        **{"stop": ["a", "b"], "num_predict": 7, "repeat_penalty": 1.1},
        **{"frequency_penalty": 1.0, "presence_penalty": -1.0},
    }
    for path, fields in (("/api/chat", {}), ("/api/generate", {"prompt": "x", "raw": True})):
        ask(client, path, options=options, **fields)
        params = engine.requests[-1].params
        assert (params.temperature, params.top_k, params.top_p) == (0.5, 12, 0.7)
        assert (params.min_p, params.seed, params.max_tokens) == (0.1, 3, 7)
        assert engine.stop_rules.strings == ("a", "b")
        assert params.repetition_penalty == 1.1
        assert (params.frequency_penalty, params.presence_penalty) == (1.0, -1.0)


@pytest.mark.parametrize("limit", [0, -1, -2, None])
def test_no_limit_and_a_random_seed(
    client: TestClient, engine: FakeEngine, limit: int | None
) -> None:
    ask(client, options={"num_predict": limit, "seed": -1, "stop": []})
    params = engine.requests[-1].params
    assert params.max_tokens == engine.model.max_model_len - len(engine.prompt.encode())
    assert (params.seed, params.stop) == (None, None)


@pytest.mark.parametrize("fields", [{}, {"raw": True}])
def test_defaults_are_ollamas(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    """Those of `DefaultOptions` in Ollama's `api/types.go`."""
    ask(client, "/api/generate", prompt="x", **fields)
    params = engine.requests[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.9, 0.0)
    assert params.repetition_penalty == 1.0


def test_the_models_own_defaults_come_first(engine: FakeEngine) -> None:
    engine.model = model_info(sampling_defaults=SamplingDefaults(temperature=0.6, top_k=20))
    with TestClient(create_app(Settings(), engine), "http://localhost") as client:
        ask(client)
        params = engine.requests[-1].params
        assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.9)
        shown = client.post("/api/show", json={"model": "tiny-test"}).json()
        assert shown["parameters"] == "temperature 0.6\ntop_k 20"


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_format_is_enforced(client: TestClient, engine: FakeEngine, path: str) -> None:
    fields = {"prompt": "x"} if path == "/api/generate" else {}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for form in ("json", schema):
        ask(client, path, format=form, **fields)
        grammar = engine.requests[-1].params.grammar
        chat.ask(client, format=form)
        assert grammar == engine.requests[-1].params.grammar is not None
    for form in ("", None, {}):
        ask(client, path, format=form, **fields)
        assert engine.requests[-1].params.grammar is None


def test_thinking_is_switched(engine: FakeEngine) -> None:
    template = "{{ enable_thinking }}|{{ reasoning_effort }}|{{ messages[0].content }}"
    engine.tokenizer = ByteTokenizer(chat_template=template)
    with TestClient(create_app(Settings(), engine), "http://localhost") as client:
        for think, expected in ((True, "True||hi"), (False, "False|none|hi"), ("low", "low|hi")):
            ask(client, think=think)
            assert engine.prompt.endswith(expected)
            ask(client, "/api/generate", prompt="hi", think=think)
            assert engine.prompt.endswith(expected)


def test_images_are_read(client: TestClient) -> None:
    engine = seeing_engine(text_script("Red."))
    data = base64.b64encode(png()).decode()
    with TestClient(create_app(Settings(), engine), "http://localhost") as client:
        ask(client, messages=[{**USER, "images": [data]}])
        assert len(engine.requests[-1].media) == 1
        ask(client, "/api/generate", prompt="hi", system="s", images=[data, data])
        assert len(engine.requests[-1].media) == 2
        bad = [USER, {**USER, "images": [data, "!"]}]
        assert "'messages[1].images[1]'" in error(client, messages=bad)
        assert "'images[0]'" in error(client, "/api/generate", prompt="x", images=["AAAA"])


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_too_many_images_are_refused_before_they_are_read(client: TestClient, path: str) -> None:
    images = ["!"] * 41
    fields: Any = {"prompt": "x", "images": images}
    if path == "/api/chat":
        fields = {"messages": [{**USER, "images": images[:20]}, {**USER, "images": images[20:]}]}
    assert "41 images, and at most 32" in error(client, path, **fields)


def test_roles_may_have_capitals(client: TestClient, engine: FakeEngine) -> None:
    roles = [{"role": role, "content": role} for role in ("System", "USER", "Assistant", "User")]
    ask(client, messages=roles)
    prompt = engine.prompt
    ask(client, messages=[{**message, "role": message["role"].lower()} for message in roles])
    assert engine.prompt == prompt


def test_audio_stands_among_the_images() -> None:
    engine = FakeEngine(
        model=model_info(images=IMAGES, audio=AUDIO),
        tokenizer=ByteTokenizer(chat_template=MEDIA_TEMPLATE),
        media_processor=FakeMediaProcessor(),
    )
    files = [base64.b64encode(file).decode() for file in (wav(), png())]
    with TestClient(create_app(Settings(), engine), "http://localhost") as client:
        ask(client, messages=[{**USER, "images": files}])
        prompt = engine.prompt
        assert {one.modality for one in engine.requests[-1].media} == {"audio", "image"}
        chat.ask(client, messages=[user(audio(wav()), image(png()), "hi")])
        assert prompt == engine.prompt
        shown = client.post("/api/show", json={}).json()
        assert shown["capabilities"] == ["completion", "vision", "audio"]


def test_a_large_image_is_not_part_of_the_body() -> None:
    records: list[FinishedRequest] = []
    settings = Settings(max_body_size=2000, ledger_text=True)
    engine = seeing_engine(text_script("Red."))
    data = base64.b64encode(png("x" * 200_000)).decode()
    app = create_app(settings, engine, sinks=[records.append])
    with TestClient(app, "http://localhost") as client:
        bodies: dict[str, dict[str, Any]] = {
            "/api/chat": {"messages": [{**USER, "images": [data]}]},
            "/api/generate": {"prompt": "hi", "images": [data]},
        }
        for path, fields in bodies.items():
            ask(client, path, **fields)
            assert len(engine.requests[-1].media) == 1
            assert '"hi"' in str(records[-1].prompt)
            assert len(str(records[-1].prompt)) < 200
            assert records[-1].endpoint == path
        assert "larger" in error(client, status=413, messages=[{**USER, "content": data}])


def test_a_model_for_text_takes_no_images(client: TestClient) -> None:
    assert "text only" in error(client, messages=[{**USER, "images": ["AAAA"]}])


def test_the_oldest_messages_are_left_out(engine: FakeEngine) -> None:
    engine.model = model_info(max_model_len=300)
    old, last = {"role": "user", "content": "x" * 300}, {"role": "user", "content": "last"}
    with TestClient(create_app(Settings(), engine), "http://localhost") as client:
        system = {"role": "system", "content": "S"}
        ask(client, messages=[system, old, {"role": "assistant", "content": "a"}, last])
        assert "last" in engine.prompt
        assert "<|im_start|>system\nS" in engine.prompt
        assert "xxx" not in engine.prompt
        assert "context length" in error(client, messages=[old, last], truncate=False)
        assert "context length" in error(client, "/api/generate", prompt="x" * 400)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "robot"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [calls({}) | {"tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ({"options": {"temperature": 3}}, "options.temperature"),
        ({"options": {"top_k": 1.5}}, "options.top_k"),
        ({"options": {"stop": [""]}}, "options.stop[0]"),
        ({"options": 5}, "options"),
        ({"think": "much"}, "think"),
        ({"format": 5}, "format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_an_error_names_the_field(client: TestClient, fields: dict[str, Any], named: str) -> None:
    assert named in error(client, **fields)


def test_errors_have_the_names_of_options(new_client: ClientFactory) -> None:
    client, options = new_client(max_completion_total=100), {"num_predict": 3000}
    text = error(client, options=options, logprobs=True, top_logprobs=20, stream=False)
    assert "max_completion_tokens" not in text
    assert "num_predict" in text


def test_the_table_has_every_field() -> None:
    kinds = (OllamaChat, OllamaGenerate, OllamaEmbed, OllamaEmbeddings)
    assert set(FIELDS) == {name for kind in kinds for name in kind.model_fields}
    assert set(OPTIONS) == set(Options.model_fields)


@pytest.mark.parametrize("name", ["template", "context"])
def test_rejected_fields_are_a_400(client: TestClient, name: str) -> None:
    assert FIELDS[name].status is FieldStatus.REJECTED
    value = [1] if name == "context" else "x"
    assert f"'{name}'" in error(client, "/api/generate", prompt="x", **{name: value})
    for neutral in (None, *FIELDS[name].neutral):
        ask(client, "/api/generate", prompt="x", **{name: neutral})


def test_what_has_no_effect_is_named(client: TestClient) -> None:
    options = {name: 7 for name, note in OPTIONS.items() if note.status is FieldStatus.NO_EFFECT}
    body = {"messages": [USER], "options": options | {"new": 1}, "keep_alive": "5m", "other": 2}
    response = client.post("/api/chat", json=body)
    named = response.headers["x-ignored-params"].split(", ")
    assert set(named) == {f"options.{name}" for name in (*options, "new")} | {"keep_alive", "other"}
    body = {"prompt": "x", "raw": True, "think": True, "truncate": True}
    response = client.post("/api/generate", json=body)
    assert response.headers["x-ignored-params"] == "truncate, think"
    neutral = {name: note.neutral[0] for name, note in OPTIONS.items() if note.neutral}
    response = client.post("/api/chat", json={"messages": [USER], "options": neutral})
    assert "x-ignored-params" not in response.headers
