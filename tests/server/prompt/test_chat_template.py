"""Rendered prompts equal those that transformers renders from the same templates."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers.utils.chat_template_utils import render_jinja_template

from stonechat_server.errors import APIError
from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions, Templates
from stonechat_server.schema.requests import ChatCompletionRequest
from tests.server.bodies import ask, body, error_of, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import CHATML, ByteTokenizer, FakeEngine, model_info

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "add", "description": 'sum "of" <two>'}}]

TRIMMED = """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'system' %}
<<SYS>>{{ message['content'] | trim }}<</SYS>>
    {% elif loop.last and not add_generation_prompt %}
        {{- message['content'] }}
        {%- break %}
    {% else %}
[{{ message.role }}] {{ message.content.strip() }}{{ eos_token }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
TOOL_AWARE = """{%- set ns = namespace(seen=0) %}
{%- if tools %}Tools: {{ tools | tojson }}
{{ tools | tojson(indent=2) }}
{%- endif %}
{%- for message in messages %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>
{%- set ns.seen = ns.seen + 1 %}
{%- endfor %}
{%- elif message.role == 'tool' %}
<result id={{ message.tool_call_id }}>{{ message.content }}</result>
{%- else %}
{{ message.role }}{{ ' ' + message.name if message.name is defined }}: {{ message.content }}
{%- endif %}
{%- endfor %} calls={{ ns.seen }}{% if documents %} docs={{ documents | length }}{% endif %}
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"""
GENERATION = """{%- for message in messages %}
{%- if message.role == 'assistant' %}A: {% generation %}{{ message.content }}{% endgeneration %}
{% else %}U: {{ message.content }}
{% endif %}
{%- endfor %}"""
PICKY = """{% if messages[0].role != 'user' %}
{{ raise_exception('must begin with the user') }}
{% endif %}
{{ messages[0].content }} in {{ strftime_now('%Y') }}"""
TEMPLATES = {
    "chatml": CHATML,
    "trimmed": TRIMMED,
    "tools": TOOL_AWARE,
    "generation": GENERATION,
    "picky": PICKY,
}
CHAT = [
    {"role": "user", "content": "  Hi <b>&amp;</b> 'there' \n"},
    {"role": "assistant", "content": "Hello\n\n"},
    {"role": "user", "content": "wörld 👋"},
]
CALLS = [
    {"role": "system", "content": "Use tools."},
    {"role": "user", "name": "bob", "content": "1+2?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "add", "arguments": {"b": "é<", "a": [1, 2.5, None]}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
]


def reference(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    ((text,), _) = render_jinja_template([messages], chat_template=template, **options, **SPECIAL)
    return str(text)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generate", [True, False])
def test_chat_renders_like_transformers(name: str, generate: bool) -> None:
    template = TEMPLATES[name]
    ours = ChatTemplate(template, SPECIAL).render(
        CHAT, RenderOptions(add_generation_prompt=generate)
    )
    assert ours == reference(template, CHAT, add_generation_prompt=generate)


def test_tools_documents_and_variables_reach_the_template() -> None:
    options = RenderOptions(
        tools=TOOLS, documents=[{"title": "x"}], variables={"enable_thinking": False}
    )
    ours = ChatTemplate(TOOL_AWARE, SPECIAL).render(CALLS, options)
    assert ours == reference(
        TOOL_AWARE,
        CALLS,
        tools=TOOLS,
        documents=[{"title": "x"}],
        enable_thinking=False,
        add_generation_prompt=True,
    )
    assert 'sum \\"of\\" <two>' in ours


def test_functions_and_the_date_reach_a_template_with_variables_of_its_own() -> None:
    """FireFunction's template adds both to texts, so they are there without tools too."""
    source = "{{ 'Available:' + functions }} {{ 'Today is ' + datetime }} {{ messages[0].content }}"
    template = ChatTemplate(source, SPECIAL)
    messages = [{"role": "user", "content": "Hi"}]
    prompt = template.render(messages, RenderOptions(tools=TOOLS))
    assert '"name": "add"' in prompt
    assert template.render(messages, RenderOptions()).startswith("Available:[] Today is 2")


@pytest.mark.parametrize("name", ["chatml", "generation"])
def test_the_last_message_is_continued_like_transformers_does(name: str) -> None:
    messages = [*CHAT, {"role": "assistant", "content": "The answer is"}]
    options = RenderOptions(add_generation_prompt=False, continue_final_message=True)
    ours = ChatTemplate(TEMPLATES[name], SPECIAL).render(messages, options)
    assert ours == reference(TEMPLATES[name], messages, continue_final_message=True)
    assert ours.endswith("The answer is")


def test_arguments_are_text_for_a_template_that_joins_them() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}{% endfor %}"
    )
    assert ChatTemplate(template, {}).render(CALLS, RenderOptions()) == (
        'add({"b": "é<", "a": [1, 2.5, null]})'
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ messages.clear() }}",
        "{% for a in range(1000000000) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ undefined_thing.attribute }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    with pytest.raises(APIError) as error_info:
        ChatTemplate(template, {}).render(CHAT, RenderOptions())
    assert error_info.value.status == 400


def test_a_broken_template_is_a_400() -> None:
    with pytest.raises(APIError, match="not valid"):
        ChatTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", {})
    with pytest.raises(APIError, match="not valid"):
        ChatTemplate("{% if %}", {})


def test_refusal_of_the_template_is_a_400(new_client: ClientFactory, engine: FakeEngine) -> None:
    engine.tokenizer = ByteTokenizer(chat_template="{{ raise_exception('not today') }}")
    response = post(new_client(), messages=[{"role": "assistant", "content": "x"}])
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "chat_template_error"
    assert "not today" in error["message"]


def test_the_prompt_of_a_request(client: TestClient, engine: FakeEngine) -> None:
    ask(client, messages=[{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}])
    assert engine.prompt == (
        "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    ask(client, add_generation_prompt=False)
    assert engine.prompt == "<|im_start|>user\nhi<|im_end|>\n"
    ask(
        client,
        messages=[{"role": "user", "content": "b"}, {"role": "assistant", "content": "It is "}],
        continue_final_message=True,
    )
    assert engine.prompt.endswith("<|im_start|>assistant\nIt is ")


def test_long_prompts_are_the_same_as_short_ones(client: TestClient, engine: FakeEngine) -> None:
    engine.model = model_info(max_model_len=10**6)
    ask(client, messages=[{"role": "user", "content": "x" * 50_000}])
    assert engine.prompt == (
        "<|im_start|>user\n" + "x" * 50_000 + "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_model_without_a_template_gets_the_plain_one(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.tokenizer = ByteTokenizer(chat_template=None)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi", "name": "bob"},
    ]
    ask(new_client(), messages=messages)
    assert engine.prompt == "system: Be brief.\n\nuser (bob): hi\n\nassistant:"


def test_templates_from_settings_and_requests(
    new_client: ClientFactory, engine: FakeEngine, tmp_path: Any
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0].content }}|{{ reasoning_effort }}|{{ color }}")
    client = new_client(chat_template=str(file), allow_request_templates=True)
    ask(client, reasoning_effort="low", chat_template_kwargs={"color": "red"})
    assert engine.prompt == "hi|low|red"
    ask(client, chat_template="{{ messages | length }}")
    assert engine.prompt == "1"
    assert error_of(post(client, chat_template="{% if %}"))["param"] == "chat_template"
    assert error_of(post(client, chat_template=""))["param"] == "messages"


def test_a_continued_message_needs_text_that_the_template_renders() -> None:
    options = RenderOptions(continue_final_message=True)
    image = {"role": "assistant", "content": [{"type": "image"}]}
    with pytest.raises(APIError, match="needs text in the last message") as error_info:
        ChatTemplate(CHATML, {}).render([*CHAT, image], options)
    assert (error_info.value.status, error_info.value.param) == (400, "messages")
    with pytest.raises(APIError, match="does not render the last message") as error_info:
        ChatTemplate("{{ messages[0].content }}", {}).render(CHAT, options)
    assert (error_info.value.status, error_info.value.param) == (400, "messages")


def test_a_type_error_without_calls_is_the_templates() -> None:
    with pytest.raises(APIError, match="cannot render") as error_info:
        ChatTemplate("{{ 1 + messages[0].content }}", {}).render(CHAT, RenderOptions())
    assert error_info.value.code == "chat_template_error"


def test_arguments_that_are_text_already_are_not_quoted_again() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.type }} {{ (c.function or c.custom).name + ' '"
        " + (c.function.arguments if c.function else c.custom.input) }}\n"
        "{% endfor %}{% endfor %}"
    )
    calls = [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
        {"type": "function", "function": {"name": "add", "arguments": "[1"}},
        {"type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
    ]
    messages = [*CHAT, {"role": "assistant", "content": "", "tool_calls": calls}]
    assert ChatTemplate(template, {}).render(messages, RenderOptions()) == (
        'function add {"a": 1}\nfunction add [1\ncustom sql SELECT\n'
    )


def request_with(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(body(**fields))


def test_a_models_template_for_tools_serves_requests_with_tools(tmp_path: Any) -> None:
    tokenizer = ByteTokenizer(chat_templates={"tool_use": "tools!"})
    templates = Templates(tokenizer)
    assert templates.select(request_with()).source == CHATML
    assert templates.select(request_with(tools=TOOLS)).source == "tools!"
    assert not templates.is_plain
    file = tmp_path / "template.jinja"
    file.write_text("{{ 'from a file, ö' }}", encoding="utf-8")
    for override in (str(file), file.read_text(encoding="utf-8")):
        templates = Templates(tokenizer, override)
        for request in (request_with(), request_with(tools=TOOLS)):
            text = templates.select(request).render(CHAT, RenderOptions())
            assert text == "from a file, ö"


def test_templates_of_requests_must_be_allowed() -> None:
    request = request_with(chat_template="{{ messages | length }}")
    with pytest.raises(APIError, match="does not accept chat templates") as error_info:
        Templates(ByteTokenizer()).select(request)
    assert error_info.value.code == "unsupported_parameter"
    allowing = Templates(ByteTokenizer(), allow_request=True)
    assert allowing.select(request).render(CHAT, RenderOptions()) == "3"
