"""Special tokens of formats and markers reach the parser, but never the client."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.settings import Settings
from stonechat_server.tool_formats.select import FORMATS, select_format
from tests.server.bodies import post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine, text_script

SPECIALS = ("<s>", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]")
TEMPLATE = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}{# [TOOL_CALLS] [ARGS] #}x"
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


@dataclass
class MistralTokenizer(ByteTokenizer):
    """Byte tokens and the special tokens of Mistral."""

    chat_template: str | None = TEMPLATE
    special_ids: frozenset[int] = field(
        default_factory=lambda: frozenset(range(256, 256 + len(SPECIALS)))
    )
    vocab_size: int = 256 + len(SPECIALS)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [256 + SPECIALS.index(text)] if text in SPECIALS else list(text.encode())

    def token_text(self, token_id: int) -> str:
        return SPECIALS[token_id - 256] if token_id >= 256 else super().token_text(token_id)


@pytest.fixture
def client(new_client: ClientFactory, engine: FakeEngine) -> TestClient:
    engine.tokenizer = MistralTokenizer()
    return new_client()


def test_markers_that_are_special_tokens(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(
        "[THINK]", "Time", "?", "[/THINK]", "Ok.", "<s>", "[TOOL_CALLS]", "now", "[ARGS]", "{}"
    )
    answer = post(client, tools=[NOW]).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == "Time?"
    assert message["content"] == "Ok."
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": "{}"}
    assert len(call["id"]) == 9
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    params = engine.requests[-1].params
    assert not params.skip_special_tokens
    assert params.grammar is not None
    assert "<[257]>" in params.grammar.source
    assert "<[258]>" in params.grammar.source
    assert params.reasoning is not None
    assert not params.reasoning.starts_open


def test_special_tokens_that_no_parser_needs_are_skipped(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.tokenizer = MistralTokenizer()
    client = new_client(reasoning=False)
    post(client)
    assert engine.requests[-1].params.skip_special_tokens
    engine.script = text_script("a<s>", "b")
    message = post(client, skip_special_tokens=False).json()["choices"][0]["message"]
    assert message["content"] == "a<s>b"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("... [TOOL_CALLS] ... [ARGS]", "mistral"),
        ("... [TOOL_CALLS] [", "mistral_list"),
        ("<\uff5ctool\u2581calls\u2581begin\uff5c> ```json", "deepseek_v3"),
        ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "deepseek_v31"),
        ("<tool_call>", "hermes"),
        ("<tool_call> <function=f> <parameter=a>", "qwen_coder"),
        ("<seed:tool_call> <function=f> <parameter=a>", "seed"),
        ("<minimax:tool_call>", "minimax"),
        ("<tool_call>{name} <arg_key>", "glm"),
        ("<|tool_calls_section_begin|>", "kimi"),
        ("<|im_system|>tool_declare<|im_middle|>", "kimi"),
        ("<|channel|>commentary", "harmony"),
        ("<|start|>assistant to=self<|message|> <atem:function_calls>", "muse"),
        ('<atem:function_calls> "parameters": ', "generic"),
        ("<\uff5cDSML\uff5cfunction_calls>", "deepseek_v32"),
        ("<TOOLCALL>", "nemotron"),
        ("<|tool_call|>", "granite"),
        ("<|tool|>[]<|/tool|>", "phi"),
        ("<|tool_list_start|>[]<|tool_list_end|>", "lfm2"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
        ('Respond in the format {"name": function name, "parameters": dictionary', "llama_json"),
        ("<|python_tag|>", "llama_json"),
        ("tools", "generic"),
    ],
)
def test_the_template_shows_the_format(template: str, name: str) -> None:
    assert select_format(template).name == name


def test_the_flag_knows_every_format() -> None:
    for name in FORMATS:
        assert Settings(tool_format=name).tool_format == name
