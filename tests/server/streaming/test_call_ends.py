"""How answers with calls end: cut by their limit, or by a call that repeats an earlier one."""

import json
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from stonechat_models import FinishReason, GenerateRequest, LogprobEntry, RequestOutput
from tests.server.bodies import ask, stream
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import (
    ByteTokenizer,
    FakeEngine,
    Script,
    delta,
    output,
    text_script,
)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER, NOW = tool("get_weather", city={"type": "string"}), tool("now")
TOOLS = [WEATHER, NOW]
MODES: list[dict[str, Any]] = [
    {"tool_choice": "auto"},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
]
CALLS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    "llama_json": '{"name": "get_weather", "parameters": {"city": "Rome"}}',
    "pythonic": '[get_weather(city="Rome")]',
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}',
    "qwen_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n"
    "</function>\n</tool_call>",
    "glm": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
    "</tool_call>",
}


def cut_script(text: str, reason: FinishReason = FinishReason.LENGTH) -> Script:
    """One character per step; the last one ends the answer."""

    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        pieces = [delta(char) for char in text[:-1]] + [delta(text[-1:], finish=reason)]
        last = len(pieces) - 1
        return [output(request, piece, finished=i == last) for i, piece in enumerate(pieces)]

    return play


def both(client: TestClient, **fields: Any) -> tuple[Any, str | None, Any]:
    """The content, the finish reason and the calls of the plain answer; as those of the stream."""
    choice = ask(client, **fields)["choices"][0]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    chunks = [chunk["choices"][0] for chunk in stream(client, **fields)]
    pieces = [chunk["delta"].get("content") for chunk in chunks]
    assert "".join(piece or "" for piece in pieces) == (message["content"] or "")
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]
    streamed: list[dict[str, str]] = []
    for chunk in chunks:
        for call in chunk["delta"].get("tool_calls", ()):
            if "name" in call["function"]:
                streamed.append({"name": call["function"]["name"], "arguments": ""})
            streamed[call["index"]]["arguments"] += call["function"]["arguments"]
    assert streamed == calls
    return message["content"], choice["finish_reason"], calls


@pytest.mark.parametrize("fields", MODES, ids=["auto", "required", "named"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_cut_before_its_name_is_whole_shows_no_mark(
    new_client: ClientFactory, engine: FakeEngine, name: str, fields: dict[str, Any]
) -> None:
    client = new_client(tool_format=name)
    text = CALLS[name]
    num_cut = text.index("get_weather") + len("get_weather")
    step = 1 if fields is MODES[0] else 6
    for end in range(1, num_cut, step):
        engine.script = cut_script(text[:end])
        assert both(client, tools=TOOLS, **fields) == (None, "length", []), text[:end]


def test_content_before_a_cut_call_stays(client: TestClient, engine: FakeEngine) -> None:
    for cut in ("\n<tool_c", "<tool_call>", '\n\n<tool_call>\n{"name": "get_we'):
        engine.script = cut_script("I look." + cut)
        assert both(client, tools=TOOLS) == ("I look.", "length", [])


def test_a_call_cut_after_its_name_is_shown(client: TestClient, engine: FakeEngine) -> None:
    engine.script = cut_script(CALLS["hermes"][:-17])
    content, reason, (call,) = both(client, tools=TOOLS)
    assert (content, reason) == (None, "length")
    assert call["name"] == "get_weather"
    with pytest.raises(json.JSONDecodeError):
        json.loads(call["arguments"])


def test_a_mark_in_text_that_ends_by_itself_is_content(
    client: TestClient, engine: FakeEngine
) -> None:
    for text in ("<tool_call>", "The tag is <tool_call>", "Write <tool_call>\n{", "<tool_"):
        engine.script = cut_script(text, FinishReason.STOP)
        assert both(client, tools=TOOLS) == (text, "stop", [])
        assert both(client, tools=TOOLS, tool_choice="required")[0] in (None, "")


def test_a_cut_text_is_content(client: TestClient, engine: FakeEngine) -> None:
    for text in ("Hello", "1 <", "x = [", '{"na', '{"name": "Paris"'):
        engine.script = cut_script(text)
        assert both(client, tools=TOOLS) == (text, "length", [])
        assert both(client) == (text, "length", [])


def test_an_empty_answer_is_empty_text(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("")
    assert both(client, tools=TOOLS) == ("", "stop", [])


# --- bare calls ---

BARE = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
ROME = {"name": "get_weather", "arguments": '{"city": "Rome"}'}


@pytest.mark.parametrize("text", [BARE, f"\n{BARE}\n", f"```json\n{BARE}\n```", f"[{BARE}]"])
def test_a_bare_call_is_a_call(client: TestClient, engine: FakeEngine, text: str) -> None:
    engine.script = cut_script(text, FinishReason.STOP)
    assert both(client, tools=TOOLS) == (None, "tool_calls", [ROME])


def test_where_a_bare_call_is_text(new_client: ClientFactory, engine: FakeEngine) -> None:
    engine.script = cut_script(BARE, FinishReason.STOP)
    client = new_client()
    text = (BARE, "stop", [])
    assert both(client) == text
    assert both(client, tools=TOOLS, tool_choice="none") == text
    assert both(client, tools=[NOW]) == text
    assert both(client, tools=TOOLS, response_format={"type": "json_object"}) == text
    assert both(new_client(bare_calls=False), tools=TOOLS) == text
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert both(client, tools=TOOLS, tool_choice=choice) == text


def test_a_bare_call_after_reasoning(new_client: ClientFactory, engine: FakeEngine) -> None:
    engine.tokenizer.chat_template = "{# </think> #}x"
    client = new_client()
    engine.script = cut_script(f"<think>Well.</think>\n\n{BARE}", FinishReason.STOP)
    message = ask(client, tools=TOOLS)["choices"][0]["message"]
    assert message["reasoning_content"] == "Well."
    assert [call["function"] for call in message["tool_calls"]] == [ROME]


def test_text_streams_on_once_it_is_no_bare_call(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script('{"na', 'me": ', '"Pa', "ris", '"}')
    chunks = stream(client, tools=TOOLS)
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:-1]]
    assert texts == ['{"name": "Pa', "ris", '"}']


def test_only_one_bare_call_without_parallel_calls(client: TestClient, engine: FakeEngine) -> None:
    engine.script = cut_script(f'[{BARE}, {{"name": "now", "arguments": {{}}}}] x')
    assert both(client, tools=TOOLS, parallel_tool_calls=False) == (None, "tool_calls", [ROME])
    functions = [tool["function"] for tool in TOOLS]
    choice = ask(client, functions=functions)["choices"][0]
    assert choice["message"]["function_call"] == ROME
    assert choice["finish_reason"] == "function_call"


def test_every_choice_may_be_a_bare_call(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(BARE[:20], BARE[20:])
    choices = ask(client, tools=TOOLS, n=2)["choices"]
    assert [choice["message"]["tool_calls"][0]["function"] for choice in choices] == [ROME] * 2


# --- repeated calls ---

CALL = CALLS["hermes"] + "\n"
OSLO = CALL.replace("Rome", "Oslo")


def endless(*texts: str, text: str = "") -> Script:
    """Choice i writes `texts[i]` again and again, one character per step, up to the limit."""

    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        items: list[RequestOutput | Exception | float] = []
        for step in range(1000):
            finish = FinishReason.LENGTH if step == 999 else None
            deltas = [delta((t * 1000)[step], i, finish) for i, t in enumerate(texts)]
            items.append(output(request, *deltas, finished=step == 999, cached=2))
        return items

    return play


@pytest.mark.parametrize("name", CALLS)
def test_a_repeated_call_ends_the_answer(
    new_client: ClientFactory, engine: FakeEngine, name: str
) -> None:
    if name == "llama_json":
        return  # one call is the whole answer
    separator = "" if name in ("mistral", "pythonic") else "\n"
    repeated = CALLS[name] if name != "pythonic" else 'get_weather(city="Rome"), '
    engine.script = endless(repeated + separator)
    client = new_client(tool_format=name)
    if name == "pythonic":
        engine.script = cut_script("[" + repeated * 9)
    assert both(client, tools=TOOLS) == (None, "tool_calls", [ROME])
    if name != "pythonic":
        assert engine.aborted == [request.request_id for request in engine.requests]


def test_the_calls_before_a_repeat_stay(client: TestClient, engine: FakeEngine) -> None:
    engine.script = endless(f"First.\n{CALL}{OSLO}")
    oslo = {**ROME, "arguments": '{"city": "Oslo"}'}
    content, reason, calls = both(client, tools=TOOLS)
    assert (content, reason, calls) == ("First.First.", "tool_calls", [ROME, oslo])


def test_the_usage_counts_the_tokens_of_the_repeat(client: TestClient, engine: FakeEngine) -> None:
    engine.script = endless(CALL)
    end = 2 * len(CALL) - len("}\n</tool_call>\n")
    answer = ask(client, tools=TOOLS)
    assert answer["usage"]["completion_tokens"] == end
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    last = stream(client, tools=TOOLS, stream_options={"include_usage": True})[-1]
    assert last["usage"] == answer["usage"]
    assert last["choices"] == []


def test_a_repeat_can_be_allowed(new_client: ClientFactory, engine: FakeEngine) -> None:
    engine.script = cut_script(CALL * 3, FinishReason.STOP)
    client = new_client(stop_repeated_calls=False)
    assert both(client, tools=TOOLS) == (None, "tool_calls", [ROME] * 3)


def test_only_the_choice_that_repeats_ends(client: TestClient, engine: FakeEngine) -> None:
    engine.script = endless(CALL, "x")
    choices = ask(client, tools=TOOLS, n=2)["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "length"]
    assert choices[1]["message"]["content"] == "x" * 1000
    assert engine.ended == [(engine.requests[-1].request_id, 0)]
    assert engine.aborted == []
    usage = ask(client, tools=TOOLS, n=2)["usage"]
    assert usage["completion_tokens"] == 2 * len(CALL) - len("}\n</tool_call>\n") + 1000


def test_a_request_ends_with_its_last_choice(client: TestClient, engine: FakeEngine) -> None:
    engine.script = endless(CALL, CALL + OSLO)
    choices = ask(client, tools=TOOLS, n=2)["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls"] * 2
    assert [len(choice["message"]["tool_calls"]) for choice in choices] == [1, 2]
    assert engine.aborted == [engine.requests[-1].request_id]


def entry(char: str) -> LogprobEntry:
    return LogprobEntry(ord(char), char, char.encode(), -0.5, ())


def test_logprobs_end_with_the_delivered_text(client: TestClient, engine: FakeEngine) -> None:
    play = endless(f"Hi.\n{CALL}")

    def with_logprobs(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        items: list[RequestOutput | Exception | float] = []
        for item in play(request):
            assert isinstance(item, RequestOutput)
            deltas = [
                msgspec.structs.replace(d, logprobs=tuple(map(entry, d.text))) for d in item.deltas
            ]
            items.append(msgspec.structs.replace(item, deltas=tuple(deltas)))
        return items

    engine.script = with_logprobs
    choice = ask(client, tools=TOOLS, logprobs=True)["choices"][0]
    text = "".join(item["token"] for item in choice["logprobs"]["content"])
    assert choice["message"]["content"] == "Hi.Hi."
    assert text == f"Hi.\n{CALL}Hi."


def test_joined_outputs_end_at_the_same_token(client: TestClient, engine: FakeEngine) -> None:
    engine.script = endless(CALL)
    expected = ask(client, tools=TOOLS)
    play = engine.script

    def joined(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        outputs = [item for item in play(request) if isinstance(item, RequestOutput)]
        deltas = tuple(d for item in outputs for d in item.deltas)
        return [msgspec.structs.replace(outputs[-1], deltas=deltas)]

    engine.script = joined
    answer = ask(client, tools=TOOLS)
    assert answer["usage"] == expected["usage"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


# --- calls in open reasoning ---


def with_marks(new_client: ClientFactory, engine: FakeEngine, marks: str) -> TestClient:
    template = f"{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{{# {marks} #}}"
    engine.tokenizer = ByteTokenizer(chat_template=template)
    return new_client(tool_format="hermes")


def test_calls_in_reasoning_that_a_limit_cuts_are_reasoning(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = with_marks(new_client, engine, "<think></think>")
    thought = f"I could write {CALLS['hermes']} but no. Then"
    for end in range(len("I could"), len(thought), 4):
        engine.script = cut_script(f"<think>{thought[:end]}")
        assert both(client, tools=TOOLS) == (None, "length", []), thought[:end]
        message = ask(client, tools=TOOLS)["choices"][0]["message"]
        assert message["reasoning_content"] == thought[:end].rstrip()


def test_calls_at_the_end_of_open_reasoning_are_calls(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = with_marks(new_client, engine, "<think></think>")
    engine.script = cut_script(f"<think>I look.\n{CALLS['hermes']}", FinishReason.STOP)
    assert both(client, tools=TOOLS) == (None, "tool_calls", [ROME])
    message = ask(client, tools=TOOLS)["choices"][0]["message"]
    assert message["reasoning_content"] == "I look."


def test_a_cut_mark_of_the_answer_is_no_content(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = with_marks(new_client, engine, "<think></think><response></response>")
    text = "<think>a</think><response>Hello</response>"
    for end, content in ((len(text) - 3, "Hello"), (text.index("ponse>"), None), (5, None)):
        engine.script = cut_script(text[:end])
        assert both(client)[0] == (content or "")
        assert both(client, tools=TOOLS) == (content, "length", [])
