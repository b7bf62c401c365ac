"""Triggers are found, and their beginnings held back, however the text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from stonechat_server.parsers.triggers import TriggerFinder, inner_triggers
from stonechat_server.tool_formats.layout import hold_back
from stonechat_server.tool_formats.select import FORMATS

TRIGGERS = ("<tool_call>", "<function=now", "<function=now_utc", "[TOOL_CALLS]", "<<")


@given(st.text("<tol_caunciw=[TOLCAS>] ", max_size=30))
def test_what_may_begin_a_trigger_is_held(text: str) -> None:
    finder = TriggerFinder(TRIGGERS)
    positions = [text.find(trigger) for trigger in TRIGGERS if trigger in text]
    found = finder.find(text)
    if found is None:
        assert not positions
        assert finder.num_held(text) == hold_back(text, TRIGGERS)
    else:
        assert found[0] == min(positions)
        assert text[found[0] :].startswith(found[1])


def test_nothing_is_found_without_triggers() -> None:
    finder = TriggerFinder(())
    assert finder.find("<tool_call>") is None
    assert finder.num_held("<tool_call>") == 0


def test_a_tag_with_a_known_name_opens_a_call() -> None:
    def of(name: str) -> tuple[str, ...]:
        return inner_triggers(FORMATS[name], ["now", "add"])

    assert of("qwen_coder") == ("<function=now", "<function=add")
    assert of("minimax") == ('<invoke name="now', '<invoke name="add')
    assert of("kimi") == ("<|tool_call_begin|>functions.now", "<|tool_call_begin|>functions.add")
    glm = ("now<arg_key>", "now\n<arg_key>", "add<arg_key>", "add\n<arg_key>")
    assert of("glm") == glm
    assert of("gemma4") == of("function_gemma") == ("call:now{", "call:add{")
    for name in ("hermes", "llama_json", "pythonic", "nemotron", "mistral", "harmony"):
        assert of(name) == ()
