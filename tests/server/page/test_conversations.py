"""The page keeps conversations: nothing that was asked or answered is lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from stonechat_models import FinishReason, GenerateRequest, RequestOutput
from tests.server.fake_engine import delta, output
from tests.server.live import wait_until
from tests.server.live_server import LiveServer

from .conftest import KEY, script
from .test_page import ask, copy_as, page, piece, stream_of

__all__ = ["page"]  # a fixture


def answered(page: Any, count: int) -> None:
    page.wait_for_function(
        "n => document.querySelectorAll('.turn.assistant:not(.busy) .foot').length >= n", arg=count
    )


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator("#conversations .title").all_inner_texts()
    return found


def bubbles(page: Any) -> list[str]:
    found: list[str] = page.locator(".bubble").all_inner_texts()
    return found


def menu(page: Any, name: str, row: int = 0) -> None:
    page.locator("#conversations .menu > summary").nth(row).click()
    page.locator("#conversations .menu[open]").get_by_role("button", name=name).click()


def reopen(page: Any, title: str) -> None:
    page.reload()
    page.locator("#conversations .title", has_text=title).click()
    page.wait_for_selector(".bubble")


def test_a_reload_keeps_the_conversation_and_it_goes_on(page: Any, open_server: LiveServer) -> None:
    ask(page, "first question")
    answered(page, 1)
    reopen(page, "first question")
    assert bubbles(page) == ["first question"]
    assert page.inner_text(".choice .text") == "Hello wörld 👋"
    assert "3 generated" in page.inner_text(".stats")
    page.get_by_role("button", name="Tokens", exact=True).click()
    assert page.locator(".token").count() == 3
    ask(page, "second")
    answered(page, 2)
    assert "user\nfirst question" in open_server.engine.prompt
    assert titles(page) == ["first question"]


SAVED_LENGTH = """async () => {
  const { openStore } = await import('./page/store.js');
  const turns = await (await openStore()).allTurns();
  return Math.max(...turns.map((turn) => turn.choices?.[0].content.length ?? 0));
}"""


def test_an_answer_that_a_reload_interrupts_is_kept(page: Any, open_server: LiveServer) -> None:
    open_server.engine.script = script(*["word "] * 400, pause=0.05)
    ask(page, "long")
    wait_until(lambda: page.evaluate(SAVED_LENGTH) > 20)
    reopen(page, "long")
    assert "word word" in page.inner_text(".choice .text")
    assert page.is_visible("#send")
    assert "stopped" in page.inner_text(".choice .foot")


def test_an_edit_can_be_cancelled_and_makes_a_branch(page: Any, open_server: LiveServer) -> None:
    ask(page, "teh")
    answered(page, 1)
    ask(page, "more")
    answered(page, 2)
    page.get_by_role("button", name="Edit").first.click()
    page.keyboard.press("Escape")
    assert bubbles(page) == ["teh", "more"]
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_role("button", name="Cancel").click()
    assert bubbles(page) == ["teh", "more"]
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit the question").fill("the")
    page.keyboard.press("Enter")
    answered(page, 1)
    assert bubbles(page) == ["the"]
    assert "teh" not in open_server.engine.prompt
    assert "2/2" in page.inner_text(".turn.user .branches")
    page.get_by_role("button", name="Earlier version").first.click()
    page.wait_for_selector(".bubble >> text=more")
    assert bubbles(page) == ["teh", "more"]
    reopen(page, "teh")
    assert bubbles(page) == ["teh", "more"]  # the shown branch is remembered
    page.get_by_role("button", name="Later version").first.click()
    page.wait_for_selector(".bubble >> text=/^the$/")
    assert bubbles(page) == ["the"]


def test_again_keeps_the_earlier_answer_and_what_follows(
    page: Any, open_server: LiveServer
) -> None:
    ask(page, "one")
    answered(page, 1)
    ask(page, "two")
    answered(page, 2)
    open_server.engine.script = script("Another")
    page.get_by_role("button", name="Again").first.click()
    page.wait_for_function("() => document.querySelector('.choice .text').innerText == 'Another'")
    assert bubbles(page) == ["one"]
    page.get_by_role("button", name="Earlier version").click()
    page.wait_for_selector(".bubble >> text=two")
    assert bubbles(page) == ["one", "two"]
    assert page.locator(".choice .text").first.inner_text() == "Hello wörld 👋"


def test_again_with_a_broken_schema_loses_nothing(page: Any) -> None:
    ask(page, "one")
    answered(page, 1)
    ask(page, "two")
    answered(page, 2)
    page.click("#toggle-panel")
    page.click("#tab-output")
    page.select_option("#format", "json_schema")
    page.fill("#schema", "{oops")
    page.get_by_role("button", name="Again").first.click()
    assert "Schema" in page.inner_text("#log > .problem")
    assert bubbles(page) == ["one", "two"]
    page.click("#new-chat")
    assert page.locator("#log > .problem").count() == 0


def test_new_chat_keeps_the_old_one(page: Any) -> None:
    ask(page, "old")
    answered(page, 1)
    page.click("#new-chat")
    assert page.is_visible("#empty")
    ask(page, "new")
    answered(page, 1)
    assert titles(page) == ["new", "old"]
    page.locator("#conversations .title", has_text="old").click()
    page.wait_for_selector(".bubble >> text=old")
    assert bubbles(page) == ["old"]


def test_conversations_are_found_renamed_and_deleted_with_undo(
    page: Any, open_server: LiveServer
) -> None:
    open_server.engine.script = script("A kestrel hovers.")
    ask(page, "birds")
    answered(page, 1)
    page.click("#new-chat")
    open_server.engine.script = script("Fine.")
    ask(page, "weather")
    answered(page, 1)
    page.fill("#search", "KESTREL")
    page.wait_for_function("() => document.querySelectorAll('#conversations .title').length == 1")
    assert titles(page) == ["birds"]
    page.fill("#search", "nowhere")
    page.wait_for_selector("#no-conversations:not([hidden])")
    page.fill("#search", "")
    menu(page, "Rename")
    page.keyboard.type("The sky")
    page.keyboard.press("Enter")
    assert titles(page)[0] == "The sky"
    menu(page, "Delete")
    page.wait_for_selector("text=Deleted")
    assert titles(page) == ["birds"]
    assert page.is_visible("#empty")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("() => document.querySelectorAll('#conversations .title').length == 2")
    reopen(page, "The sky")
    assert bubbles(page) == ["weather"]
    assert page.inner_text(".choice .text") == "Fine."


def test_a_deleted_conversation_leaves_nothing_behind(page: Any, open_server: LiveServer) -> None:
    """Not even if its answer still runs; and Undo brings back what had arrived."""
    open_server.engine.script = script(*["word "] * 400, pause=0.05)
    ask(page, "long")
    page.wait_for_function("() => document.querySelector('.choice .text')?.innerText.length > 8")
    menu(page, "Delete")
    page.wait_for_selector("text=Deleted")
    page.wait_for_selector("#send", state="visible")
    assert page.evaluate(NUM_TURNS) == 0
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(".bubble >> text=long")
    assert "word" in page.inner_text(".choice .text")
    assert page.evaluate(NUM_TURNS) == 2


NUM_TURNS = """async () => {
  const { openStore } = await import('./page/store.js');
  return (await (await openStore()).allTurns()).length;
}"""


def download(page: Any, name: str, tmp_path: Path) -> Path:
    with page.expect_download() as pending:
        menu(page, name)
    target = tmp_path / pending.value.suggested_filename
    pending.value.save_as(target)
    return target


@pytest.mark.parametrize("kind", ["JSON", "Markdown"])
def test_an_export_can_be_imported(page: Any, tmp_path: Path, kind: str) -> None:
    ask(page, "a **question**")
    answered(page, 1)
    ask(page, "and another")
    answered(page, 2)
    file = download(page, f"Export as {kind}", tmp_path)
    assert "a **question**" in file.read_text()
    menu(page, "Delete")
    page.wait_for_selector("text=Deleted")
    page.set_input_files("#import-file", file)
    page.wait_for_selector("text=Imported 1 conversation.")
    reopen(page, "a **question**")
    assert bubbles(page) == ["a **question**", "and another"]
    assert page.locator(".choice .text").all_inner_texts() == ["Hello wörld 👋"] * 2
    page.get_by_role("button", name="Tokens", exact=True).first.wait_for(
        state="visible" if kind == "JSON" else "detached"
    )


BAD_FILES = {
    "a.json": "{oops",
    "b.json": '{"format": "other"}',
    "c.json": json.dumps(
        {"format": "stonechat-conversations", "conversations": [{"turns": [{"role": "x"}]}]}
    ),
    "d.md": "# Only a heading",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_export_is_refused(page: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(BAD_FILES[name])
    page.set_input_files("#import-file", file)
    page.wait_for_selector(f".toast >> text={name}:")
    assert titles(page) == []


def test_a_hostile_import_runs_nothing(page: Any, tmp_path: Path) -> None:
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


def fail(page: Any, status: int, message: str, **headers: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}})
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=status, body=body, content_type="application/json", headers=headers
        ),
    )


def test_a_failed_turn_is_not_sent_on_and_its_question_comes_back(
    page: Any, open_server: LiveServer
) -> None:
    ask(page, "fine")
    answered(page, 1)
    fail(page, 503, "too many requests wait", **{"Retry-After": "7"})
    ask(page, "fails")
    page.wait_for_selector(".turn.assistant .problem:not([hidden])")
    shown = page.inner_text(".turn.assistant .problem:not([hidden])")
    assert "busy" in shown
    assert "Try again in 7 s." in shown
    assert "too many requests wait" in shown
    assert page.input_value("#prompt") == "fails"
    page.unroute("**/v1/chat/completions")
    ask(page, "works")
    answered(page, 3)
    assert "user\nworks" in open_server.engine.prompt
    assert "fails" not in open_server.engine.prompt
    page.get_by_role("button", name="Retry").click()
    page.wait_for_selector(".branches >> text=2/2")
    answered(page, 2)
    assert "user\nfails" in open_server.engine.prompt
    assert "works" not in open_server.engine.prompt


def test_a_server_that_is_gone_is_said_in_plain_words(page: Any) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page)
    page.wait_for_selector("text=The server does not answer.")


def test_a_wrong_key_is_not_a_missing_key(browser: Any, locked_server: LiveServer) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.goto(locked_server.url)
    tab.wait_for_selector("text=This server wants a key")
    tab.fill("#key", "sk-wrong")
    tab.keyboard.press("Tab")
    tab.wait_for_selector("text=The server does not accept this key.")
    tab.fill("#key", KEY)
    tab.keyboard.press("Tab")
    tab.wait_for_selector("#model option[value='tiny-test']", state="attached")
    assert tab.inner_text("#key-problem") == ""
    context.close()


def test_text_files_are_attached_and_others_are_refused(
    page: Any, open_server: LiveServer, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("alpha\n```\nbeta")
    (tmp_path / "model.bin").write_bytes(b"GGUF\x00\xff")
    page.set_input_files("#attach-file", [tmp_path / "notes.txt", tmp_path / "model.bin"])
    page.wait_for_selector("text=model.bin is neither an image nor a text file.")
    assert page.locator("#files .file").count() == 1
    ask(page, "Summarise it")
    answered(page, 1)
    sent = "File notes.txt:\n````\nalpha\n```\nbeta\n````\n\nSummarise it"
    assert sent in open_server.engine.prompt
    assert page.is_hidden("#files")
    assert page.inner_text(".bubble").startswith("notes.txt")


def test_a_dropped_file_is_attached(page: Any) -> None:
    page.evaluate(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(['x = 1'], 'a.py'));
          const options = { dataTransfer: data, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent('drop', options));
        }"""
    )
    page.wait_for_selector("#files .file >> text=a.py")
    page.get_by_role("button", name="Remove a.py").click()
    assert page.is_hidden("#files")


def test_first_sight_is_a_chat_with_examples(page: Any, open_server: LiveServer) -> None:
    assert page.is_hidden("#panel")
    page.locator("#examples button").first.click()
    answered(page, 1)
    assert "why the sky is blue" in open_server.engine.prompt
    assert page.is_hidden("#empty")
    params = open_server.engine.requests[-1].params
    assert params.temperature == 1.0  # the API's default, not the page's


def test_the_model_card_and_the_context_meter(page: Any) -> None:
    page.click("#card summary")
    card = page.inner_text("#card-rows")
    assert "Context" in card
    assert "4,096 tokens" in card
    page.keyboard.press("Escape")
    assert page.is_hidden("#card-rows")
    assert page.is_hidden("#context")
    ask(page)
    answered(page, 1)
    assert "of 4,096 tokens of context" in page.inner_text("#context")


def test_a_value_out_of_range_is_reported_and_not_sent(page: Any, open_server: LiveServer) -> None:
    page.click("#toggle-panel")
    page.fill("#field-temperature", "5")
    assert "must be 0 to 2" in page.inner_text("#help-temperature")
    assert page.get_attribute("#field-temperature", "aria-invalid") == "true"
    ask(page, "x")
    assert "temperature: must be 0 to 2" in page.inner_text("#log > .problem")
    assert page.input_value("#prompt") == "x"
    assert open_server.engine.requests == []
    page.fill("#field-temperature", "1.35")
    assert page.inner_text("#help-temperature").startswith("0 to 2.")


def test_reasoning_folds_and_names_its_time(page: Any) -> None:
    stream_of(page, piece(reasoning_content="Hmm."), piece(content="Four."))
    ask(page, "2+2?")
    answered(page, 1)
    assert page.get_attribute(".reasoning", "open") is None
    assert page.inner_text(".reasoning summary").startswith("Thought for ")


def test_mathematics_and_code_are_set(page: Any, open_server: LiveServer) -> None:
    text = (
        "\\[\nx^2\n\\]\n\nand $y_1$, \\(z\\), $5, $6, \\(\\frac{\n\n```python\ndef f(): pass\n```"
    )
    open_server.engine.script = script(text)
    ask(page)
    answered(page, 1)
    assert page.locator(".math math").count() == 3
    assert page.locator(".math.display math").count() == 1
    assert "$5, $6" in page.inner_text(".choice .text")
    assert page.inner_text(".hljs-keyword") == "def"
    assert page.locator("[style]:not(.token)").count() == page.locator("#prompt[style]").count()


def test_two_calls_of_one_tool_look_different(page: Any) -> None:
    def call(index: int, city: str) -> dict[str, Any]:
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        return {"index": index, "id": f"call_{index}", "type": "function", "function": function}

    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    stream_of(page, piece(tool_calls=[call(0, "Bern"), call(1, "Basel")]), end)
    ask(page)
    page.wait_for_selector(".tool-results")
    heads = page.locator(".tool-call summary").all_inner_texts()
    assert heads == ['Calls get_weather(city: "Bern")', 'Calls get_weather(city: "Basel")']


def test_jump_to_the_end(page: Any, open_server: LiveServer) -> None:
    open_server.engine.script = script("line\n\n" * 200)
    ask(page)
    answered(page, 1)
    page.evaluate("document.getElementById('log').scrollTop = 0")
    page.click("#to-end")
    page.wait_for_selector("#to-end", state="hidden")


def test_a_selection_survives_while_the_answer_grows(page: Any) -> None:
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


def test_without_a_database_the_page_works_and_warns(browser: Any, open_server: LiveServer) -> None:
    open_server.engine.script = script("Hello")
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.goto(open_server.url)
    tab.wait_for_selector("#model option:not([value=''])", state="attached")
    assert tab.is_visible("#not-kept")
    ask(tab, "hi")
    answered(tab, 1)
    tab.click("#new-chat")
    tab.locator("#conversations .title", has_text="hi").click()
    tab.wait_for_selector(".bubble")
    assert bubbles(tab) == ["hi"]
    context.close()


def test_copy_as_shows_the_shown_branch(page: Any) -> None:
    ask(page, "kept")
    answered(page, 1)
    copy_as(page)
    assert "kept" in page.inner_text("#code-text")


def test_a_cut_answer_goes_on_in_a_branch(page: Any, open_server: LiveServer) -> None:
    def cut(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        piece = delta("Rivers are long and", 0, FinishReason.LENGTH)
        return [output(request, piece, finished=True)]

    open_server.engine.script = cut
    ask(page, "Tell me")
    answered(page, 1)
    open_server.engine.script = script(" wide.")
    page.get_by_role("button", name="Continue", exact=True).click()
    page.wait_for_selector(".branches")
    answered(page, 1)
    assert page.inner_text(".choice .text") == "Rivers are long and wide."
    assert page.inner_text(".branches").split()[1] == "2/2"
    assert open_server.engine.prompt.endswith("assistant\nRivers are long and")
    assert page.get_by_role("button", name="Continue", exact=True).count() == 0
    page.get_by_role("button", name="Earlier version").click()
    page.wait_for_function(
        "() => document.querySelector('.choice .text').innerText === 'Rivers are long and'"
    )
