"""What `stonechat serve` says of a model when it starts."""

import pytest

from stonechat_server.app import create_app
from stonechat_server.commands.serve import _warnings
from stonechat_server.prompt.chat_template import NO_TEMPLATE
from stonechat_server.settings import Settings
from stonechat_server.structured.template_traits import UNKNOWN_FORM
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info


@pytest.mark.parametrize(
    ("template", "override", "expected"),
    [
        ("{{ messages[0].content }}", None, []),
        (None, None, [NO_TEMPLATE]),
        ("", None, [NO_TEMPLATE]),
        (None, "{{ messages[0].content }}", []),
        ("{{ tools }} <my_call>", None, [UNKNOWN_FORM]),
    ],
)
def test_warnings_of_the_chat_template(
    template: str | None, override: str | None, expected: list[str]
) -> None:
    engine = FakeEngine(tokenizer=ByteTokenizer(chat_template=template))
    app = create_app(Settings(ledger="off", chat_template=override), engine)
    assert _warnings(app.state.server, engine.model) == expected


def test_notes_of_the_models_files_are_shown_too() -> None:
    engine = FakeEngine(
        model=model_info(notes=("an adapter lies there",)),
        tokenizer=ByteTokenizer(chat_template=None),
    )
    app = create_app(Settings(ledger="off"), engine)
    assert _warnings(app.state.server, engine.model) == [NO_TEMPLATE, "an adapter lies there"]


def test_the_form_of_prompts_without_a_template_is_named() -> None:
    assert "`role: content`" in NO_TEMPLATE
    assert "--chat-template" in NO_TEMPLATE
