"""The page in a real browser, with a real server and a scripted engine."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from stonechat_models import FinishReason, GenerateRequest, RequestOutput, StopRules
from stonechat_server.settings import Settings
from tests.server.catalog.scripted_models import models
from tests.server.fake_engine import delta, output
from tests.server.live import wait_until
from tests.server.live_server import LiveServer, live_server

from .conftest import KEY, script


@pytest.fixture
def page(browser: Any, open_server: LiveServer) -> Iterator[Any]:
    """A new tab with the page. Fails if the page logs an error or requests another host."""
    open_server.engine.script = script("Hello", " **wörld**", " 👋")
    open_server.engine.requests.clear()
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    tab.on(
        "request",
        lambda r: None if r.url.startswith(open_server.url) else problems.append(r.url),
    )
    tab.set_default_timeout(60_000)
    tab.goto(open_server.url)
    tab.wait_for_selector("#model option:not([value=''])", state="attached")
    yield tab
    context.close()
    assert [
        problem for problem in problems if not problem.startswith("Failed to load resource")
    ] == []


def ask(page: Any, text: str = "Hi") -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def settings(page: Any) -> None:
    """Show the settings, with all fields."""
    page.click("#toggle-panel")
    page.click("#more-fields summary")


def copy_as(page: Any) -> None:
    page.click("#more summary")
    page.click("#copy-as")


def test_an_answer_streams_in_as_markdown_with_usage_and_speed(page: Any) -> None:
    ask(page)
    page.wait_for_selector(".choice .foot button")
    assert page.inner_text(".choice .text") == "Hello wörld 👋"
    assert page.inner_text(".choice .text strong") == "wörld"
    stats = page.inner_text(".stats")
    assert "3 generated" in stats
    assert "(3 cached)" in stats
    assert "first token after" in stats
    assert "stop" in page.inner_text(".choice .foot")


def test_the_conversation_goes_on_with_its_history(page: Any, open_server: LiveServer) -> None:
    page.click("#toggle-panel")
    page.fill("#system", "Be brief.")
    ask(page, "first")
    page.wait_for_selector(".choice .foot button")
    ask(page, "second")
    page.wait_for_function("() => document.querySelectorAll('.choice .foot button').length > 6")
    prompt = open_server.engine.prompt
    for part in (
        "system\nBe brief.",
        "user\nfirst",
        "assistant\nHello **wörld** 👋",
        "user\nsecond",
    ):
        assert part in prompt


def test_stop_ends_the_request_and_keeps_the_text(page: Any, open_server: LiveServer) -> None:
    open_server.engine.script = script(*["word "] * 200, pause=0.05)
    ask(page)
    page.wait_for_function("() => document.querySelector('.choice .text')?.innerText.length > 8")
    page.keyboard.press("Escape")
    page.wait_for_selector(".choice .foot button")
    assert page.is_visible("#send")
    assert "word word" in page.inner_text(".choice .text")
    wait_until(lambda: open_server.engine.requests[-1].request_id in open_server.engine.aborted)


def test_every_field_reaches_the_engine(page: Any, open_server: LiveServer) -> None:
    fields = {
        "temperature": "0.3", "top_p": "0.8", "top_k": "40", "min_p": "0.05", "seed": "7", "n": "2",
        "max_completion_tokens": "99", "frequency_penalty": "0.5", "presence_penalty": "-0.5",
        "repetition_penalty": "1.1", "min_tokens": "3", "top_logprobs": "4",
        "stop": "END\nSTOP", "stop_token_ids": "[5]", "logit_bias": '{"9": -3}',
    }  # fmt: skip
    settings(page)
    for name, value in fields.items():
        page.fill(f"#field-{name}", value)
    page.check("#field-ignore_eos")
    ask(page)
    page.wait_for_selector(".choice .foot button")
    params = open_server.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.3, 0.8, 40, 0.05)
    assert (params.seed, params.n, params.max_tokens, params.min_tokens) == (7, 2, 99, 3)
    assert (params.frequency_penalty, params.presence_penalty) == (0.5, -0.5)
    assert (params.repetition_penalty, params.top_logprobs) == (1.1, 4)
    assert (params.stop, params.stop_token_ids) == (StopRules(strings=("END", "STOP")), (5,))
    assert dict(params.logit_bias) == {9: -3.0}
    assert params.ignore_eos
    page.reload()
    assert page.input_value("#field-top_k") == "40"


def test_several_answers_stand_side_by_side_and_one_is_continued(
    page: Any, open_server: LiveServer
) -> None:
    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        stop = FinishReason.STOP
        deltas = [delta(f"answer {i}", i, stop) for i in range(request.params.n)]
        return [output(request, *deltas, finished=True)]

    open_server.engine.script = play
    page.click("#toggle-panel")
    page.fill("#field-n", "3")
    page.click("#toggle-panel")
    ask(page)
    page.wait_for_selector(".pick")
    assert page.locator(".choice").count() == 3
    tops = page.eval_on_selector_all(
        ".choice", "all => all.map(e => e.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == 1
    page.locator(".pick").nth(1).click()
    ask(page, "more")
    page.wait_for_function("() => document.querySelectorAll('.pick').length == 6")
    assert "assistant\nanswer 1<" in open_server.engine.prompt
    assert "answer 0" not in open_server.engine.prompt


def test_the_token_view_shades_tokens_and_shows_alternatives(page: Any) -> None:
    ask(page)
    page.wait_for_selector(".choice .foot button")
    page.get_by_role("button", name="Tokens", exact=True).click()
    tokens = page.locator(".token")
    assert tokens.all_inner_texts() == ["Hello", " **wörld**", " 👋"]
    shades = tokens.evaluate_all("all => all.map(e => +e.style.getPropertyValue('--doubt'))")
    assert shades == sorted(shades)
    assert shades[0] == pytest.approx(0.2, abs=0.001)
    tokens.nth(2).hover()
    text = page.inner_text("#popover")
    assert "f0 9f 91 8b" in text  # the bytes of 👋
    assert "30.8 %" in text
    assert "·other" in text
    page.mouse.move(0, 0)
    assert page.is_hidden("#popover")
    tokens.nth(0).focus()
    assert page.is_visible("#popover")


def test_model_text_cannot_run_anything(page: Any, open_server: LiveServer) -> None:
    evil = (
        "<img src=x onerror=window.hacked=1><script>window.hacked=1</script> "
        "[a](javascript:window.hacked=1) ![b](https://elsewhere.invalid/x.png) "
        "[c](data:text/html,x) <a href='javascript:1'>d</a> [e](https://ok.invalid/?q=1)\n\n"
        "```html\n<script>window.hacked=1</script>\n```\n"
    )
    open_server.engine.script = script(evil)
    ask(page, "<b>bold</b>")
    page.wait_for_selector(".choice .foot button")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#log img, #log script, #log iframe, #log b").count() == 0
    links = page.eval_on_selector_all("#log a", "all => all.map(e => e.href)")
    assert links == ["https://elsewhere.invalid/x.png", "https://ok.invalid/?q=1"]
    assert "<script>window.hacked=1</script>" in page.inner_text("#log pre")
    assert page.inner_text(".bubble") == "<b>bold</b>"


TASKS = (
    '<ul><li class="task"><input type="checkbox" disabled="" aria-label="Task"> a</li>'
    '<li class="task"><input type="checkbox" disabled="" aria-label="Task"> b</li></ul>'
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# One\ntwo\n\nthree", "<h2>One</h2><p>two</p><p>three</p>"),
        ("a **b _c_** `d*e*`", "<p>a <strong>b <em>c</em></strong> <code>d*e*</code></p>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
        ("snake_case_name 2*3*4", "<p>snake_case_name 2<em>3</em>4</p>"),
        ("1 < 2 & *", "<p>1 &lt; 2 &amp; *</p>"),
        ("***", "<hr>"),
        ("## One ##", "<h3>One</h3>"),
        ("# C#", "<h2>C#</h2>"),
        ("# #", "<h2></h2>"),
        (r"[a\]b](x:y)", "<p>[a]b](x:y)</p>"),
        ("- [x] a\n- [ ] b", TASKS),
        ("a $5 and $6 b", "<p>a $5 and $6 b</p>"),
        (r"`\(x\)`", r"<p><code>\(x\)</code></p>"),
        (
            "|a|b|\n|:-|-:|\n|1|",
            '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th>'
            '<th class="right">b</th></tr></thead>'
            '<tbody><tr><td>1</td><td class="right"></td></tr></tbody></table></div>',
        ),
        ("a|b\n|-x", "<p>a|b<br>|-x</p>"),
    ],
)
def test_markdown(page: Any, source: str, expected: str) -> None:
    html = page.evaluate(
        """async (source) => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          drawMarkdown(box, source);
          return box.innerHTML.replaceAll('\\n', '');
        }""",
        source,
    )
    assert html == expected


MANY = 1_000_000
HOSTILE = {
    "a link": ["[", r"\a ", 100_000, ""],
    "an escape": ["[", "\\\\", 100_000, "]"],
    "a heading": ["# ", " a#  ", 100_000, "\u2028b"],
    "a heading's marks": ["# a", "#", MANY, "b"],
    "a fence": ["```", " ", MANY, "`"],
    "a fence of tildes": ["", "~", MANY, "`"],
    "an item": ["- ", " ", MANY, "a\u2028b"],
    "a table's rule": ["a|b\n", " ", MANY, "x"],
    "a table's end": ["a|b\n|-", " ", MANY, "x"],
    "a table's width": ["|" * 30_000 + "\n" + "|-" * 30_000 + "\n", "|\n", 30_000, ""],
    "code": ["`" * 300_000, "a", 300_000, ""],
    "many nodes": ["", "a\n", 150_000, ""],
}
"""A start, a piece, how often the piece comes, and an end."""


def render(page: Any, start: str, piece: str, count: int, end: str) -> int:
    """Render a text that the page itself repeats. Returns the number of blocks."""
    number: int = page.evaluate(
        """async ([start, piece, count, end]) => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          drawMarkdown(box, start + piece.repeat(count) + end);
          return box.childNodes.length;
        }""",
        [start, piece, count, end],
    )
    return number


@pytest.mark.parametrize("name", list(HOSTILE))
def test_markdown_takes_time_linear_in_the_length(page: Any, name: str) -> None:
    """A rule that backtracks would not come to an end: it needs 10^11 steps or more."""
    assert render(page, *HOSTILE[name]) > 0


def test_markdown_renders_any_text(page: Any) -> None:
    for piece in ("*", "_a", "[", "`", "> ", "- ", "**a ", "|-", "![](", "<", "  - "):
        assert render(page, "", piece, 24_000, "") > 0
        assert render(page, "", piece + "\n", 4_800, "") > 0


def test_a_table_and_code_render(page: Any, open_server: LiveServer) -> None:
    open_server.engine.script = script("| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```")
    ask(page)
    page.wait_for_selector(".choice .foot button")
    assert page.locator(".text td").all_inner_texts() == ["1", "2"]
    assert page.inner_text(".code-head span") == "py"


def test_tools_are_sent_called_and_answered(page: Any, open_server: LiveServer) -> None:
    bodies: list[dict[str, Any]] = []
    chunks = [
        {"delta": {"role": "assistant", "content": None}},
        {"delta": {"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                                   "function": {"name": "get_weather", "arguments": ""}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ' "Bern"}'}}]}},
        {"delta": {}, "finish_reason": "tool_calls"},
    ]  # fmt: skip

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        events = (
            chunks
            if len(bodies) == 1
            else [{"delta": {"content": "Sunny."}, "finish_reason": "stop"}]
        )
        text = "".join(f"data: {json.dumps({'choices': [{'index': 0, **e}]})}\n\n" for e in events)
        route.fulfill(body=text + "data: [DONE]\n\n", content_type="text/event-stream")

    page.route("**/v1/chat/completions", answer)
    page.click("#toggle-panel")
    page.click("#tab-tools")
    page.click("#tools-example")
    page.select_option("#tool-choice", label="get_weather")
    ask(page, "Weather in Bern?")
    page.fill(".tool-results textarea", "22 degrees")
    page.click(".tool-results button")
    page.wait_for_selector(".choice >> text=Sunny.")
    assert bodies[0]["tools"][0]["function"]["name"] == "get_weather"
    assert bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    _, call, result = bodies[1]["messages"]
    assert call["tool_calls"][0]["function"] == {
        "name": "get_weather",
        "arguments": '{"city": "Bern"}',
    }
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"}


def test_a_schema_is_sent_and_an_invalid_one_is_reported(page: Any) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(body="data: [DONE]\n\n", content_type="text/event-stream")

    page.route("**/v1/chat/completions", answer)
    page.click("#toggle-panel")
    page.click("#tab-output")
    page.select_option("#format", "json_schema")
    page.fill("#schema", "{oops")
    assert page.inner_text("#schema-problem") != ""
    ask(page, "x")
    assert "Schema" in page.inner_text("#log .problem")
    page.click("#schema-example")
    assert page.inner_text("#schema-problem") == ""
    page.focus("#prompt")
    page.keyboard.press("Enter")
    page.wait_for_selector(".choice .foot button")
    schema = bodies[0]["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert "age" in schema["schema"]["properties"]


def test_the_request_can_be_copied_as_code(page: Any) -> None:
    page.fill("#prompt", 'It\'s "quoted"\nhere')
    copy_as(page)
    curl = page.inner_text("#code-text")
    assert "/v1/chat/completions'" in curl
    assert "It'\\''s" in curl
    page.get_by_role("tab", name="Python").click()
    code = page.inner_text("#code-text")
    compile(code, "snippet", "exec")
    assert 'model="tiny-test"' in code
    page.get_by_role("tab", name="JavaScript").click()
    assert "await client.chat.completions.create({" in page.inner_text("#code-text")
    page.get_by_role("button", name="Close").click()
    assert page.is_hidden("#code-dialog")


def test_errors_of_the_server_are_shown(page: Any, open_server: LiveServer) -> None:
    open_server.engine.script = lambda request: [RuntimeError("broken")]
    ask(page)
    page.wait_for_selector(".turn.assistant .problem:not([hidden])")
    page.wait_for_selector("#send")


def test_the_keyboard_is_enough(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Alt+s")
    assert page.is_visible("#panel")
    page.keyboard.press("Alt+h")
    assert page.is_hidden("#chats")
    page.focus("#tab-sampling")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#pane-output")
    prompt = page.locator("#prompt")
    prompt.focus()
    page.keyboard.type("line 1")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line 2")
    assert prompt.input_value() == "line 1\nline 2"
    page.keyboard.press("Enter")
    page.wait_for_selector(".choice .foot button")
    page.keyboard.press("Alt+n")
    assert page.locator(".choice").count() == 0


def test_the_load_is_live(page: Any, open_server: LiveServer) -> None:
    page.wait_for_function(
        "() => document.querySelector('#load').textContent.startsWith('0 running')"
    )
    open_server.engine.script = script(*["a"] * 100, pause=0.05)
    ask(page)
    page.wait_for_function(
        "() => document.querySelector('#load').textContent.startsWith('1 running')"
    )
    page.click("#stop")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_theme(
    browser: Any, open_server: LiveServer, scheme: str
) -> None:
    open_server.engine.script = script("A long answer. " * 40, "\n\n```\n" + "x" * 300 + "\n```\n")
    context = browser.new_context(
        viewport={"width": 390, "height": 780}, color_scheme=scheme, has_touch=True
    )
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.goto(open_server.url)
    tab.wait_for_selector("#model option:not([value=''])", state="attached")
    ask(tab)
    tab.wait_for_selector(".choice .foot button")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.is_hidden("#panel")
    tab.click("#toggle-panel")
    assert tab.is_visible("#field-temperature")
    tab.click("#tab-output")  # not covered by the header
    shade = tab.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1]
    assert (int(shade.split(",")[0]) > 128) == (scheme == "light")
    context.close()


def test_the_key_stays_in_the_tab(browser: Any, locked_server: LiveServer) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.goto(locked_server.url)
    tab.wait_for_selector("#key", state="visible")  # the page asks for the key at once
    tab.fill("#key", KEY)
    tab.keyboard.press("Tab")
    tab.wait_for_selector("#model option[value='tiny-test']", state="attached")
    ask(tab)
    tab.wait_for_selector(".choice .foot button")
    assert KEY not in tab.evaluate("JSON.stringify(localStorage) + document.cookie")
    copy_as(tab)
    assert KEY not in tab.inner_text("#code-dialog")
    other = context.new_page()
    other.goto(locked_server.url)
    assert other.evaluate("sessionStorage.length") == 0
    context.close()


def stream_of(page: Any, *events: object, end: str = "data: [DONE]\n\n") -> None:
    """Answer every chat request with these events."""
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=text, content_type="text/event-stream"),
    )


def piece(**delta: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def test_reasoning_is_kept_apart_and_not_sent_back(page: Any) -> None:
    stream_of(page, piece(reasoning_content="Hmm **so**."), piece(content="Four."))
    ask(page, "2+2?")
    page.wait_for_selector(".choice .foot button")
    assert page.inner_text(".choice .text") == "Four."
    assert "Hmm **so**." in page.text_content(".reasoning")
    copy_as(page)
    assert "Hmm" not in page.inner_text("#code-text")


@pytest.mark.parametrize(
    ("events", "end", "problem"),
    [
        ([piece(content="half")], "", "cut off"),
        ([piece(content="half"), {"error": {"message": "the step failed"}}], "", "the step failed"),
    ],
)
def test_an_answer_that_breaks_off_is_kept_and_the_problem_is_shown(
    page: Any, events: list[object], end: str, problem: str
) -> None:
    stream_of(page, *events, end=end)
    ask(page)
    page.wait_for_selector(".choice .foot button")
    assert problem in page.inner_text(".turn.assistant .problem")
    assert page.inner_text(".choice .text") == "half"
    assert page.is_visible("#send")


def test_keep_alives_and_a_character_cut_in_two_do_no_harm(page: Any) -> None:
    chunks = page.evaluate(
        """async () => {
          const { events } = await import('./page/api.js');
          const text = ': ping\\n\\ndata: "wö👋"\\r\\n\\r\\ndata:x\\n\\n';
          const bytes = new TextEncoder().encode(text);
          const results = [];
          for (let cut = 0; cut <= bytes.length; cut += 1) {
            const stream = new ReadableStream({ start(control) {
              control.enqueue(bytes.slice(0, cut));
              control.enqueue(bytes.slice(cut));
              control.close();
            } });
            const read = [];
            for await (const data of events(stream)) read.push(data);
            results.push(read.join('|'));
          }
          return [...new Set(results)];
        }"""
    )
    assert chunks == ['"wö👋"|x']


def test_the_menu_has_the_states_of_several_models(browser: Any) -> None:
    them = models({"first": 4, "second": 4})
    with live_server(Settings(), them.catalog) as server:
        tab = browser.new_context().new_page()
        tab.set_default_timeout(60_000)
        tab.goto(server.url)
        tab.wait_for_selector("#model option >> text=second (unloaded)", state="attached")
        tab.select_option("#model", "second")
        ask(tab)
        tab.wait_for_selector(".choice .foot button")
        assert tab.inner_text(".choice .text") == "Hello wörld 👋"
        tab.wait_for_selector("#model option >> text=/^second$/", state="attached")
        tab.wait_for_selector("#model option >> text=first (unloaded)", state="attached")
        assert tab.input_value("#model") == "second"
        tab.context.close()
    assert them.loader.started == ["second"]
