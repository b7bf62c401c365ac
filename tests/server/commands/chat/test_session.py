"""The commands of the terminal chat."""

from pathlib import Path

import pytest

from stonechat_server.commands.chat.session import CommandError, Session


@pytest.fixture
def session() -> Session:
    new_session = Session("m")
    new_session.ask("first")
    new_session.answer("one")
    new_session.ask("second")
    new_session.answer("two")
    return new_session


def test_settings_are_json_or_text(session: Session) -> None:
    for line in ("/set temperature 0.2", '/set stop ["a", "b"]', "/set user me", "/set seed 7"):
        session.command(line)
    assert session.settings == {
        "temperature": 0.2, "stop": ["a", "b"], "user": "me", "seed": 7,
    }  # fmt: skip
    session.command("/unset seed")
    assert "seed" not in session.settings
    assert "temperature = 0.2" in session.command("/settings")


def test_the_system_prompt_comes_first_and_can_be_removed(session: Session) -> None:
    session.command("/system Be brief.")
    assert session.messages[0] == {"role": "system", "content": "Be brief."}
    session.command("/system")
    assert session.messages[0]["role"] == "user"


def test_undo_retry_and_clear(session: Session) -> None:
    session.command("/undo")
    assert [turn["content"] for turn in session.turns] == ["first", "one"]
    session.command("/retry")
    assert session.wants_answer
    assert [turn["content"] for turn in session.turns] == ["first"]
    session.command("/clear")
    assert session.turns == []
    assert not session.wants_answer
    for line in ("/undo", "/retry"):
        with pytest.raises(CommandError):
            session.command(line)


def test_a_conversation_survives_its_file(session: Session, tmp_path: Path) -> None:
    session.command("/system S")
    session.command("/set top_p 0.5")
    path = tmp_path / "with space.json"
    session.command(f'/save "{path}"')
    other = Session("m")
    other.command(f"/load '{path}'")
    assert (other.messages, other.settings) == (session.messages, session.settings)


def test_a_file_goes_in_front_of_the_next_message_only(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("content")
    session.command(f"/file {path}")
    session.ask("what is it?")
    session.ask("and?")
    assert [turn["content"] for turn in session.turns[-2:]] == ["content\n\nwhat is it?", "and?"]


@pytest.mark.parametrize(
    "line", ["/nothing", "/set x", "/unset x", "/load /no/such", "/save", "/file 'open", "/model"]
)
def test_a_failed_command_is_an_error_and_changes_nothing(session: Session, line: str) -> None:
    before = list(session.messages)
    with pytest.raises(CommandError):
        session.command(line)
    assert session.messages == before


def test_unset_without_a_name_says_how_to_use_it(session: Session) -> None:
    with pytest.raises(CommandError, match=r"^usage: /unset NAME$"):
        session.command("/unset")


def test_help_names_every_command(session: Session) -> None:
    help_text = session.command("/help")
    for name in session._actions():
        assert f"/{name}" in help_text or name == "exit"
