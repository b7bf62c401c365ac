"""The page keeps conversations: nothing that was asked or answered is lost."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stonechat_models import FinishReason, GenerateRequest, RequestOutput
from tests.server.fake_engine import delta, output
from tests.server.live import wait_until
from tests.server.live_server import LiveServer

from .conftest import KEY, endless, script
from .driver import (
    Browser,
    Page,
    Route,
    answer_is,
    answered,
    ask,
    bubbles_are,
    copy_as,
    delete,
    download,
    expect,
    menu,
    models_known,
    open_conversation,
    open_tab,
    piece,
    press,
    reopen,
    settings,
    stream_of,
    titles_are,
)


def test_a_reload_keeps_the_conversation_and_it_goes_on(
    page: Page, open_server: LiveServer
) -> None:
    ask(page, "first question")
    answered(page)
    reopen(page, "first question")
    bubbles_are(page, "first question")
    answer_is(page, "Hello wörld 👋")
    expect(page.locator(".stats")).to_contain_text("3 generated")
    press(page, "Tokens")
    expect(page.locator(".token")).to_have_count(3)
    ask(page, "second")
    answered(page, 2)
    assert "user\nfirst question" in open_server.engine.prompt
    titles_are(page, "first question")


SAVED_LENGTH = """async () => {
  const { openStore } = await import('./page/store.js');
  const turns = await (await openStore()).store.allTurns();
  return Math.max(...turns.map((turn) => turn.choices?.[0].content.length ?? 0));
}"""


def test_an_answer_that_a_reload_interrupts_is_kept(page: Page, open_server: LiveServer) -> None:
    open_server.engine.script = endless()
    ask(page, "long")
    wait_until(lambda: page.evaluate(SAVED_LENGTH) > 20)
    reopen(page, "long")
    expect(page.locator(".choice .text")).to_contain_text("word word")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".choice .foot")).to_contain_text("stopped")


def test_an_edit_can_be_cancelled_and_makes_a_branch(page: Page, open_server: LiveServer) -> None:
    ask(page, "teh")
    answered(page)
    ask(page, "more")
    answered(page, 2)
    press(page, "Edit")
    page.keyboard.press("Escape")
    bubbles_are(page, "teh", "more")
    press(page, "Edit")
    press(page, "Cancel")
    bubbles_are(page, "teh", "more")
    press(page, "Edit")
    page.get_by_label("Edit the question").fill("the")
    page.keyboard.press("Enter")
    bubbles_are(page, "the")
    answered(page)
    assert "teh" not in open_server.engine.prompt
    expect(page.locator(".turn.user .branches")).to_contain_text("2/2")
    press(page, "Earlier version")
    bubbles_are(page, "teh", "more")
    reopen(page, "teh")
    bubbles_are(page, "teh", "more")  # the shown branch is remembered
    press(page, "Later version")
    bubbles_are(page, "the")


def test_again_keeps_the_earlier_answer_and_what_follows(
    page: Page, open_server: LiveServer
) -> None:
    ask(page, "one")
    answered(page)
    ask(page, "two")
    answered(page, 2)
    open_server.engine.script = script("Another")
    press(page, "Again")
    answer_is(page, "Another")
    answered(page)
    bubbles_are(page, "one")
    press(page, "Earlier version")
    bubbles_are(page, "one", "two")
    answer_is(page, "Hello wörld 👋")


def test_again_with_a_broken_schema_loses_nothing(page: Page) -> None:
    ask(page, "one")
    answered(page)
    ask(page, "two")
    answered(page, 2)
    settings(page, "output")
    page.select_option("#format", "json_schema")
    page.fill("#schema", "{oops")
    press(page, "Again")
    expect(page.locator("#log > .problem")).to_contain_text("Schema")
    bubbles_are(page, "one", "two")
    page.click("#new-chat")
    expect(page.locator("#log > .problem")).to_have_count(0)


def test_new_chat_keeps_the_old_one(page: Page) -> None:
    ask(page, "old")
    answered(page)
    page.click("#new-chat")
    expect(page.locator("#empty")).to_be_visible()
    ask(page, "new")
    answered(page)
    titles_are(page, "new", "old")
    open_conversation(page, "old")
    bubbles_are(page, "old")


def test_conversations_are_found_renamed_and_deleted_with_undo(
    page: Page, open_server: LiveServer
) -> None:
    open_server.engine.script = script("A kestrel hovers.")
    ask(page, "birds")
    answered(page)
    page.click("#new-chat")
    open_server.engine.script = script("Fine.")
    ask(page, "weather")
    answered(page)
    page.fill("#search", "KESTREL")
    titles_are(page, "birds")
    page.fill("#search", "nowhere")
    titles_are(page)
    expect(page.locator("#no-conversations")).to_have_text("Nothing found.")
    page.fill("#search", "")
    titles_are(page, "weather", "birds")
    menu(page, "Rename")
    page.keyboard.type("The sky")
    page.keyboard.press("Enter")
    titles_are(page, "The sky", "birds")
    delete(page)
    titles_are(page, "birds")
    expect(page.locator("#empty")).to_be_visible()
    press(page, "Undo")
    titles_are(page, "The sky", "birds")
    reopen(page, "The sky")
    bubbles_are(page, "weather")
    answer_is(page, "Fine.")


def test_a_deleted_conversation_leaves_nothing_behind(page: Page, open_server: LiveServer) -> None:
    """Not even if its answer still runs; and Undo brings back what had arrived."""
    open_server.engine.script = endless()
    ask(page, "long")
    expect(page.locator(".choice .text")).to_contain_text("word word")
    delete(page)
    wait_until(lambda: open_server.engine.num_running == 0)
    assert page.evaluate(NUM_TURNS) == 0
    press(page, "Undo")
    bubbles_are(page, "long")
    expect(page.locator(".choice .text")).to_contain_text("word")
    assert page.evaluate(NUM_TURNS) == 2


NUM_TURNS = """async () => {
  const { openStore } = await import('./page/store.js');
  return (await (await openStore()).store.allTurns()).length;
}"""


@pytest.mark.parametrize("kind", ["JSON", "Markdown"])
def test_an_export_can_be_imported(page: Page, tmp_path: Path, kind: str) -> None:
    ask(page, "a **question**")
    answered(page)
    ask(page, "and another")
    answered(page, 2)
    file = download(page, f"Export as {kind}", tmp_path)
    assert "a **question**" in file.read_text()
    delete(page)
    page.set_input_files("#import-file", file)
    page.wait_for_selector("text=Imported 1 conversation.")
    reopen(page, "a **question**")
    bubbles_are(page, "a **question**", "and another")
    expect(page.locator(".choice .text")).to_have_text(["Hello wörld 👋"] * 2)
    tokens = page.get_by_role("button", name="Tokens", exact=True)
    expect(tokens).to_have_count(2 if kind == "JSON" else 0)
    expect(page.locator(".turn.assistant").first).not_to_contain_text("stopped")


BAD_FILES = {
    "a.json": "{oops",
    "b.json": '{"format": "other"}',
    "c.json": json.dumps(
        {"format": "stonechat-conversations", "conversations": [{"turns": [{"role": "x"}]}]}
    ),
    "d.md": "# Only a heading",
}


def test_a_file_that_is_no_export_is_refused(page: Page, tmp_path: Path) -> None:
    for name, text in BAD_FILES.items():
        (tmp_path / name).write_text(text)
    page.set_input_files("#import-file", [tmp_path / name for name in BAD_FILES])
    toasts = page.locator(".toast > span")
    expect(toasts).to_have_text([re.compile(f"^{re.escape(name)}: ") for name in BAD_FILES])
    titles_are(page)


def test_a_hostile_import_runs_nothing(page: Page, tmp_path: Path) -> None:
    turn = {
        "id": "t", "parent": "", "role": "assistant", "picked": 7, "state": "<b>", "created": "x",
        "choices": [{"content": {"a": 1}, "toolCalls": [{"type": "function"}, 5], "logprobs": [1]}],
        "problem": {"text": "<img src=x onerror=window.hacked=1>"},
    }  # fmt: skip
    stored = {"title": "<script>window.hacked=1</script>", "turns": [turn], "active": {"": "gone"}}
    file = tmp_path / "evil.json"
    data = {"format": "stonechat-conversations", "version": 1, "conversations": [stored]}
    file.write_text(json.dumps(data))
    page.set_input_files("#import-file", file)
    page.wait_for_selector("text=Imported 1 conversation.")
    page.locator("#conversations .title").click()
    page.wait_for_selector(".choice", state="attached")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#log img").count() == 0


def fail(page: Page, status: int, message: str, **headers: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}})

    def answer(route: Route) -> None:
        route.fulfill(status=status, body=body, content_type="application/json", headers=headers)

    page.route("**/v1/chat/completions", answer)


def test_a_failed_turn_is_not_sent_on_and_its_question_comes_back(
    page: Page, open_server: LiveServer
) -> None:
    ask(page, "fine")
    answered(page)
    fail(page, 503, "too many requests wait", **{"Retry-After": "7"})
    ask(page, "fails")
    problem = page.locator(".turn.assistant .problem:not([hidden])")
    for part in ("busy", "Try again in 7 s.", "too many requests wait"):
        expect(problem).to_contain_text(part)
    expect(page.locator("#prompt")).to_have_value("fails")
    page.unroute("**/v1/chat/completions")
    ask(page, "works")
    answered(page, 3)
    assert "user\nworks" in open_server.engine.prompt
    assert "fails" not in open_server.engine.prompt
    press(page, "Retry")
    page.wait_for_selector(".branches >> text=2/2")
    answered(page, 2)
    expect(problem).to_have_count(0)
    assert "user\nfails" in open_server.engine.prompt
    assert "works" not in open_server.engine.prompt


def test_a_server_that_is_gone_is_said_in_plain_words(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page)
    page.wait_for_selector("text=The server does not answer.")
    page.wait_for_selector("text=The browser says: Failed to fetch")


def test_a_wrong_key_is_not_a_missing_key(browser: Browser, locked_server: LiveServer) -> None:
    with open_tab(browser, locked_server) as tab:
        problem = tab.locator("#key-problem")
        expect(problem).to_have_text("This server wants a key before it answers.")
        expect(tab.locator("#key")).to_be_focused()
        tab.fill("#key", "sk-wrong")
        tab.keyboard.press("Tab")
        expect(problem).to_have_text("The server does not accept this key.")
        tab.fill("#key", KEY)
        tab.keyboard.press("Tab")
        models_known(tab)
        expect(problem).to_be_empty()


def test_text_files_are_attached_and_others_are_refused(
    page: Page, open_server: LiveServer, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("alpha\n```\nbeta")
    (tmp_path / "model.bin").write_bytes(b"GGUF\x00\xff")
    page.set_input_files("#attach-file", [tmp_path / "notes.txt", tmp_path / "model.bin"])
    page.wait_for_selector("text=model.bin is no image, audio, PDF or text file.")
    expect(page.locator("#files .file")).to_have_count(1)
    ask(page, "Summarise it")
    answered(page)
    sent = "File notes.txt:\n````\nalpha\n```\nbeta\n````\n\nSummarise it"
    assert sent in open_server.engine.prompt
    expect(page.locator("#files")).to_be_hidden()
    expect(page.locator(".bubble")).to_have_text(re.compile("^notes.txt"))


def test_a_dropped_file_is_attached(page: Page) -> None:
    page.evaluate(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(['x = 1'], 'a.py'));
          const options = { dataTransfer: data, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent('drop', options));
        }"""
    )
    page.wait_for_selector("#files .file >> text=a.py")
    press(page, "Remove a.py")
    expect(page.locator("#files")).to_be_hidden()


def test_first_sight_is_a_chat_with_examples(page: Page, open_server: LiveServer) -> None:
    expect(page.locator("#panel")).to_be_hidden()
    page.locator("#examples button").first.click()
    answered(page)
    assert "why the sky is blue" in open_server.engine.prompt
    expect(page.locator("#empty")).to_be_hidden()
    params = open_server.engine.requests[-1].params
    assert params.temperature == 1.0  # the API's default, not the page's


def test_the_model_card_and_the_context_meter(page: Page) -> None:
    page.click("#card summary")
    card = page.locator("#card-rows")
    expect(card).to_contain_text("Context")
    expect(card).to_contain_text("4,096 tokens")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    expect(page.locator("#context")).to_be_hidden()
    ask(page)
    answered(page)
    expect(page.locator("#context")).to_contain_text("of 4,096 tokens of context")


def test_a_value_out_of_range_is_reported_and_not_sent(page: Page, open_server: LiveServer) -> None:
    page.click("#toggle-panel")
    help_text, field = page.locator("#help-temperature"), page.locator("#field-temperature")
    field.fill("5")
    expect(help_text).to_contain_text("must be 0 to 2")
    expect(field).to_have_attribute("aria-invalid", "true")
    ask(page, "x")
    expect(page.locator("#log > .problem")).to_contain_text("temperature: must be 0 to 2")
    expect(page.locator("#prompt")).to_have_value("x")
    assert open_server.engine.requests == []
    field.fill("1.35")
    expect(help_text).to_have_text(re.compile("^0 to 2[.]"))


def test_reasoning_folds_and_names_its_time(page: Page) -> None:
    stream_of(page, [piece(reasoning_content="Hmm."), piece(content="Four.")])
    ask(page, "2+2?")
    answered(page)
    expect(page.locator(".reasoning:not([open]) summary")).to_contain_text("Thought for ")


def test_mathematics_and_code_are_set(page: Page, open_server: LiveServer) -> None:
    text = (
        "\\[\nx^2\n\\]\n\nand $y_1$, \\(z\\), $5, $6, \\(\\frac{\n\n```python\ndef f(): pass\n```"
    )
    open_server.engine.script = script(text)
    ask(page)
    answered(page)
    expect(page.locator(".math math")).to_have_count(3)
    expect(page.locator(".math.display math")).to_have_count(1)
    expect(page.locator(".choice .text")).to_contain_text("$5, $6")
    expect(page.locator(".hljs-keyword")).to_have_text(["def", "pass"])
    assert page.locator("[style]:not(.token)").count() == page.locator("#prompt[style]").count()


def test_two_calls_of_one_tool_look_different(page: Page) -> None:
    def call(index: int, city: str) -> dict[str, Any]:
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        return {"index": index, "id": f"call_{index}", "type": "function", "function": function}

    stream_of(page, [piece(tool_calls=[call(0, "Bern"), call(1, "Basel")]), piece("tool_calls")])
    ask(page)
    page.wait_for_selector(".tool-results")
    heads = ['Calls get_weather(city: "Bern")', 'Calls get_weather(city: "Basel")']
    expect(page.locator(".tool-call summary")).to_have_text(heads)


def test_jump_to_the_end(page: Page, open_server: LiveServer) -> None:
    open_server.engine.script = script("line\n\n" * 200)
    ask(page)
    answered(page)
    page.evaluate("document.getElementById('log').scrollTop = 0")
    page.click("#to-end")
    page.wait_for_selector("#to-end", state="hidden")


AT_END = """() => {
  const { scrollHeight, scrollTop, clientHeight } = document.getElementById('log');
  return scrollTop > 1000 && scrollHeight - scrollTop - clientHeight < 60;
}"""
TO_START = """() => {
  const log = document.getElementById('log');
  log.scrollTop = 0;
  return log.scrollHeight;
}"""
GROWN = "before => document.getElementById('log').scrollHeight > before"


def test_a_growing_answer_is_followed_until_somebody_scrolls_up(
    page: Page, open_server: LiveServer
) -> None:
    open_server.engine.script = endless("line\n\n" * 10)  # more than what counts as the end
    ask(page)
    page.wait_for_function(AT_END)
    height = page.evaluate(TO_START)
    expect(page.locator("#to-end")).to_be_visible()
    page.wait_for_function(GROWN, arg=height)
    assert page.evaluate("document.getElementById('log').scrollTop") == 0
    page.click("#to-end")
    page.wait_for_function(AT_END)
    page.keyboard.press("Escape")
    answered(page)


def test_a_selection_survives_while_the_answer_grows(page: Page) -> None:
    kept = page.evaluate(
        """async () => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          drawMarkdown(box, 'one\\n\\ntwo');
          const first = box.firstChild;
          drawMarkdown(box, 'one\\n\\ntwo three');
          return first === box.firstChild && box.textContent.includes('two three');
        }"""
    )
    assert kept


@pytest.mark.parametrize(
    "before",
    [
        "Object.defineProperty(window, 'indexedDB', { value: undefined })",
        "IDBObjectStore.prototype.getAll = () => { throw new DOMException('damaged') }",
    ],
    ids=["none", "unreadable"],
)
def test_without_a_database_the_page_works_and_warns(
    browser: Browser, open_server: LiveServer, before: str
) -> None:
    open_server.engine.script = script("Hello")
    with open_tab(browser, open_server, before=before) as tab:
        expect(tab.locator("#not-kept")).to_be_visible()
        ask(tab, "hi")
        answered(tab)
        tab.click("#new-chat")
        open_conversation(tab, "hi")
        bubbles_are(tab, "hi")


def test_copy_as_shows_the_shown_branch(page: Page) -> None:
    ask(page, "kept")
    answered(page)
    copy_as(page)
    expect(page.locator("#code-text")).to_contain_text("kept")


def test_a_cut_answer_goes_on_in_a_branch(page: Page, open_server: LiveServer) -> None:
    def cut(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        piece = delta("Rivers are long and", 0, FinishReason.LENGTH)
        return [output(request, piece, finished=True)]

    open_server.engine.script = cut
    ask(page, "Tell me")
    answered(page)
    open_server.engine.script = script(" wide.")
    press(page, "Continue")
    expect(page.locator(".branches")).to_contain_text("2/2")
    answered(page)
    answer_is(page, "Rivers are long and wide.")
    assert open_server.engine.prompt.endswith("assistant\nRivers are long and")
    expect(page.get_by_role("button", name="Continue", exact=True)).to_have_count(0)
    press(page, "Earlier version")
    answer_is(page, "Rivers are long and")


def test_an_answer_that_ends_takes_no_name_from_a_conversation(
    page: Page, open_server: LiveServer
) -> None:
    """Nor does it close what is open in the list."""
    named = []
    open_server.engine.script = endless(is_over=lambda: bool(named))
    ask(page, "long")
    expect(page.locator(".choice .text")).to_contain_text("word")
    menu(page, "Rename")
    page.keyboard.type("half of a ")
    named.append(True)
    answered(page)
    page.keyboard.type("name")
    page.keyboard.press("Enter")
    titles_are(page, "half of a name")


def test_another_question_can_be_asked_while_an_answer_is_left(
    page: Page, open_server: LiveServer
) -> None:
    open_server.engine.script = endless()
    ask(page, "long")
    expect(page.locator(".choice .text")).to_contain_text("word")
    open_server.engine.script = script("Short.")
    page.click("#new-chat")
    ask(page, "short")
    answer_is(page, "Short.")
    answered(page)
    titles_are(page, "short", "long")


NEWER_PAGE = """() => new Promise((resolve, reject) => {
  const request = indexedDB.open('stonechat', 99);
  request.onsuccess = () => resolve();
  request.onerror = () => reject(request.error);
})"""


def test_a_page_whose_database_a_newer_page_has_taken_still_answers(page: Page) -> None:
    page.evaluate(NEWER_PAGE)
    ask(page)
    answered(page)
    answer_is(page, "Hello wörld 👋")
    expect(page.locator(".toast").first).to_contain_text("could not save")
    expect(page.locator("#send")).to_be_visible()


def test_a_question_whose_conversation_another_tab_deleted_is_shown(page: Page) -> None:
    paths = page.evaluate(
        """async () => {
          const { Tree } = await import('./page/tree.js');
          const turn = (id, role, parent, created) => ({ id, role, parent, created });
          const turns = [turn('b', 'user', 'gone', 1), turn('c', 'assistant', 'b', 2)];
          const tree = new Tree({ active: { gone: 'b' } }, [...turns, turn('d', 'tool', 'x', 3)]);
          return tree.path().map(({ id }) => id);
        }"""
    )
    assert paths == ["b", "c"]
