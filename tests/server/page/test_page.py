"""The page in a real browser, with a real server and a scripted engine."""

import re
from typing import Any

import pytest

from stonechat_models import (
    FinishReason,
    GenerateRequest,
    RequestOutput,
    SamplingDefaults,
    StopRules,
)
from stonechat_server.settings import Settings
from tests.server import live
from tests.server.catalog.scripted_models import models
from tests.server.fake_engine import FakeEngine, delta, model_info, output
from tests.server.live import wait_until
from tests.server.live_server import LiveServer, live_server

from .conftest import KEY, endless, script
from .driver import (
    Browser,
    Page,
    Route,
    answer_is,
    answered,
    ask,
    copy_as,
    expect,
    models_known,
    open_tab,
    piece,
    press,
    reopen,
    settings,
    stream_of,
)


def test_an_answer_streams_in_as_markdown_with_usage_and_speed(page: Page) -> None:
    ask(page)
    answered(page)
    answer_is(page, "Hello wörld 👋")
    expect(page.locator(".choice .text strong")).to_have_text("wörld")
    stats = page.locator(".stats")
    for part in ("3 generated", "(3 cached)", "first token after"):
        expect(stats).to_contain_text(part)
    expect(page.locator(".choice .foot")).to_contain_text("ended by itself")


def test_the_conversation_goes_on_with_its_history(page: Page, open_server: LiveServer) -> None:
    page.click("#toggle-panel")
    page.fill("#system", "Be brief.")
    ask(page, "first")
    answered(page)
    ask(page, "second")
    answered(page, 2)
    prompt = open_server.engine.prompt
    for part in (
        "system\nBe brief.",
        "user\nfirst",
        "assistant\nHello **wörld** 👋",
        "user\nsecond",
    ):
        assert part in prompt


def test_stop_ends_the_request_and_keeps_the_text(page: Page, open_server: LiveServer) -> None:
    open_server.engine.script = endless()
    ask(page)
    expect(page.locator(".choice .text")).to_contain_text("word word")
    page.keyboard.press("Escape")
    answered(page)
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".choice .text")).to_contain_text("word word")
    wait_until(lambda: open_server.engine.requests[-1].request_id in open_server.engine.aborted)


def test_every_field_reaches_the_engine(page: Page, open_server: LiveServer) -> None:
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
    answered(page)
    params = open_server.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.3, 0.8, 40, 0.05)
    assert (params.seed, params.n, params.max_tokens, params.min_tokens) == (7, 2, 99, 3)
    assert (params.frequency_penalty, params.presence_penalty) == (0.5, -0.5)
    assert (params.repetition_penalty, params.top_logprobs) == (1.1, 4)
    assert (params.stop, params.stop_token_ids) == (StopRules(strings=("END", "STOP")), (5,))
    assert dict(params.logit_bias) == {9: -3.0}
    assert params.ignore_eos
    page.reload()
    expect(page.locator("#field-top_k")).to_have_value("40")


def test_an_empty_field_shows_what_holds_without_it(browser: Browser) -> None:
    engine = FakeEngine(model=model_info(sampling_defaults=SamplingDefaults(temperature=0.6)))
    shown = {"temperature": "0.6", "top_p": "1", "top_k": "0", "seed": "random"}
    with live.live_server(engine) as server, open_tab(browser, server) as tab:
        for name, value in shown.items():
            field = tab.locator(f"#field-{name}")
            expect(field).to_have_attribute("placeholder", f"default: {value}")


def test_several_answers_stand_side_by_side_and_one_is_continued(
    page: Page, open_server: LiveServer
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
    answered(page)
    expect(page.locator(".choice")).to_have_count(3)
    tops = page.eval_on_selector_all(
        ".choice", "all => all.map(e => e.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == 1
    page.locator(".pick").nth(1).click()
    expect(page.locator(".pick[aria-pressed=true]")).to_have_text("Continuing with this")
    ask(page, "more")
    answered(page, 2)
    assert "assistant\nanswer 1<" in open_server.engine.prompt
    assert "answer 0" not in open_server.engine.prompt


def test_the_token_view_shades_tokens_and_shows_alternatives(page: Page) -> None:
    ask(page)
    answered(page)
    press(page, "Tokens")
    tokens = page.locator(".token")
    expect(tokens).to_have_count(3)
    assert tokens.all_inner_texts() == ["Hello", " **wörld**", " 👋"]
    shades = tokens.evaluate_all("all => all.map(e => +e.style.getPropertyValue('--doubt'))")
    assert shades == sorted(shades)
    assert shades[0] == pytest.approx(0.2, abs=0.001)
    tokens.nth(2).hover()
    popover = page.locator("#popover")
    for part in ("f0 9f 91 8b", "30.8 %", "·other"):  # the bytes of 👋 come first
        expect(popover).to_contain_text(part)
    page.mouse.move(0, 0)
    expect(popover).to_be_hidden()
    tokens.nth(0).focus()
    expect(popover).to_be_visible()


def test_model_text_cannot_run_anything(page: Page, open_server: LiveServer) -> None:
    evil = (
        "<img src=x onerror=window.hacked=1><script>window.hacked=1</script> "
        "[a](javascript:window.hacked=1) ![b](https://elsewhere.invalid/x.png) "
        "[c](data:text/html,x) <a href='javascript:1'>d</a> [e](https://ok.invalid/?q=1)\n\n"
        "```html\n<script>window.hacked=1</script>\n```\n"
    )
    open_server.engine.script = script(evil)
    ask(page, "<b>bold</b>")
    answered(page)
    expect(page.locator("#log pre")).to_contain_text("<script>window.hacked=1</script>")
    expect(page.locator(".bubble")).to_have_text("<b>bold</b>")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#log img, #log script, #log iframe, #log b").count() == 0
    links = page.eval_on_selector_all("#log a", "all => all.map(e => e.href)")
    assert links == ["https://elsewhere.invalid/x.png", "https://ok.invalid/?q=1"]


def test_a_table_and_code_render(page: Page, open_server: LiveServer) -> None:
    open_server.engine.script = script("| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```")
    ask(page)
    answered(page)
    expect(page.locator(".text td")).to_have_text(["1", "2"])
    expect(page.locator(".code-head span")).to_have_text("py")


def test_tools_are_sent_called_and_answered(page: Page) -> None:
    def call(arguments: str, **more: object) -> dict[str, object]:
        return piece(tool_calls=[{"index": 0, "function": {"arguments": arguments}} | more])

    first = {"id": "call_1", "type": "function", "function": {"name": "get_weather"}}
    calls = [piece(role="assistant", content=None), call("", **first)]
    calls += [call('{"city":'), call(' "Bern"}'), piece("tool_calls")]
    bodies = stream_of(page, calls, [piece("stop", content="Sunny.")])
    settings(page, "tools")
    page.click("#tools-example")
    page.select_option("#tool-choice", label="get_weather")
    ask(page, "Weather in Bern?")
    page.fill(".tool-results textarea", "22 degrees")
    page.click(".tool-results button")
    page.wait_for_selector(".choice >> text=Sunny.")
    assert bodies[0]["tools"][0]["function"]["name"] == "get_weather"
    assert bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    _, message, result = bodies[1]["messages"]
    assert message["tool_calls"][0]["function"] == {
        "name": "get_weather",
        "arguments": '{"city": "Bern"}',
    }
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"}


def test_a_schema_is_sent_and_an_invalid_one_is_reported(page: Page) -> None:
    bodies = stream_of(page, [])
    settings(page, "output")
    page.select_option("#format", "json_schema")
    page.fill("#schema", "{oops")
    expect(page.locator("#schema-problem")).not_to_be_empty()
    ask(page, "x")
    expect(page.locator("#log .problem")).to_contain_text("Schema")
    page.click("#schema-example")
    expect(page.locator("#schema-problem")).to_be_empty()
    page.focus("#prompt")
    page.keyboard.press("Enter")
    answered(page)
    (body,) = bodies
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert "age" in schema["schema"]["properties"]


def test_the_request_can_be_copied_as_code(page: Page) -> None:
    page.fill("#prompt", 'It\'s "quoted"\nhere')
    copy_as(page)
    code = page.locator("#code-text")
    expect(code).to_contain_text("/v1/chat/completions'")
    expect(code).to_contain_text("It'\\''s")
    page.get_by_role("tab", name="Python").click()
    expect(code).to_contain_text('model="tiny-test"')
    compile(code.inner_text(), "snippet", "exec")
    page.get_by_role("tab", name="JavaScript").click()
    expect(code).to_contain_text("await client.chat.completions.create({")
    press(page, "Close")
    expect(page.locator("#code-dialog")).to_be_hidden()


def test_errors_of_the_server_are_shown(page: Page, open_server: LiveServer) -> None:
    open_server.engine.script = lambda request: [RuntimeError("broken")]
    ask(page)
    page.wait_for_selector(".turn.assistant .problem:not([hidden])")
    page.wait_for_selector("#send")


def test_the_keyboard_is_enough(page: Page) -> None:
    prompt = page.locator("#prompt")
    expect(prompt).to_be_focused()
    page.keyboard.press("Alt+s")
    expect(page.locator("#panel")).to_be_visible()
    expect(page.locator("#tab-sampling")).to_be_focused()
    page.keyboard.press("Alt+h")
    expect(page.locator("#chats")).to_be_hidden()
    expect(prompt).to_be_focused()
    page.keyboard.press("Alt+h")
    expect(page.locator("#search")).to_be_focused()
    page.focus("#tab-sampling")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#pane-output")).to_be_visible()
    prompt.focus()
    page.keyboard.type("line 1")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line 2")
    expect(prompt).to_have_value("line 1\nline 2")
    page.keyboard.press("Enter")
    answered(page)
    page.keyboard.press("Alt+n")
    answered(page, 0)


def test_the_load_is_live(page: Page, open_server: LiveServer) -> None:
    load = page.locator("#load")
    expect(load).to_contain_text("0 running")
    open_server.engine.script = endless()
    ask(page)
    expect(load).to_contain_text("1 running")
    page.click("#stop")
    answered(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_theme(
    browser: Browser, open_server: LiveServer, scheme: str
) -> None:
    open_server.engine.script = script("A long answer. " * 40, "\n\n```\n" + "x" * 300 + "\n```\n")
    phone = {"viewport": {"width": 320, "height": 640}, "has_touch": True}
    with open_tab(browser, open_server, color_scheme=scheme, **phone) as tab:
        ask(tab)
        answered(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320
        expect(tab.locator("#context")).to_be_visible()
        left = "document.querySelector('{}').getBoundingClientRect().left"
        assert tab.evaluate(left.format("#send")) > tab.evaluate(left.format("#attach"))  # one row
        expect(tab.locator("#panel")).to_be_hidden()
        tab.click("#toggle-panel")
        expect(tab.locator("#field-temperature")).to_be_visible()
        tab.click("#tab-output")  # not covered by the header
        shade = tab.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1]
        assert (int(shade.split(",")[0]) > 128) == (scheme == "light")


def test_the_key_stays_in_the_tab(browser: Browser, locked_server: LiveServer) -> None:
    with open_tab(browser, locked_server) as tab:
        tab.wait_for_selector("#key", state="visible")  # the page asks for the key at once
        tab.fill("#key", KEY)
        tab.keyboard.press("Tab")
        models_known(tab)
        ask(tab)
        answered(tab)
        assert KEY not in tab.evaluate("JSON.stringify(localStorage) + document.cookie")
        copy_as(tab)
        expect(tab.locator("#code-text")).to_contain_text("OPENAI_API_KEY")
        assert KEY not in tab.inner_text("#code-dialog")
        other = tab.context.new_page()
        other.goto(locked_server.url)
        assert other.evaluate("sessionStorage.length") == 0


def test_reasoning_is_kept_apart_and_not_sent_back(page: Page) -> None:
    stream_of(page, [piece(reasoning_content="Hmm **so**."), piece(content="Four.")])
    ask(page, "2+2?")
    answered(page)
    answer_is(page, "Four.")
    expect(page.locator(".reasoning")).to_contain_text("Hmm **so**.")
    copy_as(page)
    expect(page.locator("#code-text")).to_contain_text("Four.")
    assert "Hmm" not in page.inner_text("#code-text")


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([piece(content="half")], "cut off"),
        ([piece(content="half"), {"error": {"message": "the step failed"}}], "the step failed"),
    ],
)
def test_an_answer_that_breaks_off_is_kept_and_the_problem_is_shown(
    page: Page, events: list[object], problem: str
) -> None:
    stream_of(page, events, end="")
    ask(page)
    answered(page)
    expect(page.locator(".turn.assistant .problem")).to_contain_text(problem)
    answer_is(page, "half")
    expect(page.locator("#send")).to_be_visible()


def test_the_menu_has_the_states_of_several_models(browser: Browser) -> None:
    them = models({"first": 4, "second": 4})
    with live_server(Settings(), them.catalog) as server, open_tab(browser, server) as tab:
        options = tab.locator("#model option")
        expect(options).to_have_text(["first (unloaded)", "second (unloaded)"])
        tab.select_option("#model", "second")
        ask(tab)
        answered(tab)
        answer_is(tab, "Hello wörld 👋")
        expect(options).to_have_text(["first (unloaded)", "second"])
        expect(tab.locator("#model")).to_have_value("second")
    assert them.loader.started == ["second"]


HOLD_MODELS = """
const { fetch } = window;
const held = new Promise((resolve) => { window.release = resolve; });
window.fetch = async (...all) => {
  if (String(all[0]).endsWith('/v1/models')) await held;
  return fetch(...all);
};
"""


def test_a_question_waits_until_the_models_are_known(own_page: Page) -> None:
    """A quick person asks before the server has said which models it has."""
    bodies = stream_of(own_page, [piece("stop", content="Here.")])
    own_page.add_init_script(HOLD_MODELS)
    own_page.reload()
    own_page.wait_for_selector("#send:enabled")
    ask(own_page, "early")
    expect(own_page.locator("#attach")).not_to_have_attribute("title", re.compile("images"))
    assert bodies == []
    own_page.evaluate("release()")
    answered(own_page)
    assert [body["model"] for body in bodies] == ["tiny-test"]


def test_what_waits_for_the_models_is_not_asked_in_another_conversation(own_page: Page) -> None:
    bodies = stream_of(own_page, [piece("stop", content="Here.")])
    ask(own_page, "first")
    answered(own_page)
    own_page.add_init_script(HOLD_MODELS)
    reopen(own_page, "first")
    press(own_page, "Again")
    own_page.click("#new-chat")
    expect(own_page.locator("#empty")).to_be_visible()
    own_page.evaluate("release()")
    models_known(own_page)
    ask(own_page, "second")
    answered(own_page)
    assert [body["messages"][-1]["content"] for body in bodies] == ["first", "second"]


HOLD_LIMITS = """
const limits = [];
AbortSignal.timeout = () => {
  limits.push(new AbortController());
  return limits.at(-1).signal;
};
window.giveUp = () => limits.forEach((one) => one.abort(new DOMException('', 'TimeoutError')));
"""


def test_a_list_of_models_that_does_not_come_is_said_and_given_up(own_page: Page) -> None:
    """A question waits for it with a sign, for a limited time, and the next one asks again."""
    bodies = stream_of(own_page, [piece("stop", content="Here.")])
    own_page.add_init_script(HOLD_LIMITS)
    own_page.route("**/v1/models", lambda _: None)
    own_page.reload()
    expect(own_page.locator("#waiting")).to_be_hidden()
    ask(own_page, "early")
    expect(own_page.locator("#waiting")).to_be_visible()
    assert bodies == []
    own_page.evaluate("giveUp()")
    answered(own_page)
    expect(own_page.locator("#waiting")).to_be_hidden()
    expect(own_page.locator("#model")).to_have_text("no answer")
    own_page.unroute("**/v1/models")
    ask(own_page, "again")
    answered(own_page, 2)
    assert [body.get("model") for body in bodies] == [None, "tiny-test"]


def hold_models_of_old_keys(tab: Page) -> list[Route]:
    """Hold back the lists of models that are asked for with an old key. Returns what is held."""
    held: list[Route] = []

    def answer(route: Route) -> None:
        if "old" in route.request.headers["authorization"]:
            held.append(route)
        else:
            route.continue_()

    tab.route("**/v1/models", answer)
    return held


def test_a_late_answer_to_an_old_key_changes_nothing(
    browser: Browser, locked_server: LiveServer
) -> None:
    with open_tab(browser, locked_server) as tab:
        tab.wait_for_selector("#key", state="visible")
        held = hold_models_of_old_keys(tab)
        for key in ("sk-old", KEY):
            tab.fill("#key", key)
            tab.keyboard.press("Tab")
        models_known(tab)
        with tab.expect_response("**/v1/models"):
            held[0].fulfill(json={"data": [{"id": "of-the-old-key"}]})
        ask(tab)  # whatever the late answer changes is changed by the time of this one
        answered(tab)
        expect(tab.locator("#model option")).to_have_text(["tiny-test"])


def test_the_sign_stays_while_a_question_waits_though_another_goes_on(
    browser: Browser, locked_server: LiveServer
) -> None:
    with open_tab(browser, locked_server) as tab:
        tab.wait_for_selector("#key", state="visible")
        held = hold_models_of_old_keys(tab)
        with tab.expect_request("**/v1/models"):
            tab.fill("#key", "sk-old")
            tab.keyboard.press("Tab")
        ask(tab, "waits for the old key")
        expect(tab.locator("#waiting")).to_be_visible()
        tab.fill("#key", KEY)
        tab.keyboard.press("Tab")
        models_known(tab)
        ask(tab, "goes on")
        answered(tab)
        expect(tab.locator("#waiting")).to_be_visible()
        held[0].fulfill(json={"data": []})
        expect(tab.locator("#waiting")).to_be_hidden()


def test_without_session_storage_the_key_lasts_as_long_as_the_page(
    browser: Browser, locked_server: LiveServer
) -> None:
    refuse = "Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('no') } })"
    with open_tab(browser, locked_server, before=refuse) as tab:
        tab.wait_for_selector("#key", state="visible")
        tab.fill("#key", KEY)
        tab.keyboard.press("Tab")
        models_known(tab)
        ask(tab)
        answered(tab)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"body": "<p>Log in</p>", "content_type": "text/html"}, "Something else answers in place"),
        ({"body": "data: {bad\n\n", "content_type": "text/event-stream"}, "is not JSON"),
        (
            {"status": 403, "json": {"error": {"code": "host_not_allowed", "message": "x"}}},
            "does not serve this page under this address",
        ),
    ],
)
def test_an_answer_that_is_none_is_explained(
    page: Page, answer: dict[str, Any], expected: str
) -> None:
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
    ask(page)
    answered(page)
    expect(page.locator(".turn.assistant .problem")).to_contain_text(expected)
    expect(page.locator("#prompt")).to_have_value("Hi")


def test_an_answer_without_text_says_so(page: Page) -> None:
    stream_of(page, [piece("stop")])
    ask(page)
    answered(page)
    expect(page.locator(".choice .foot")).to_contain_text("ended by itself · no text")
