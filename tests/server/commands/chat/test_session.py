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


def test_a_pdf_file_goes_along_as_a_file(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "a b.pdf"
    path.write_bytes(b"%PDF-1.7\n\xff")
    session.command(f"/file '{path}'")
    session.forget("image")
    session.ask("what is it?")
    [part, text] = session.turns[-1]["content"]
    data = "data:application/pdf;base64,JVBERi0xLjcK/w=="
    assert part == {"type": "file", "file": {"filename": "a b.pdf", "file_data": data}}
    assert text == {"type": "text", "text": "what is it?"}
    assert "[application/pdf, 10 bytes]" in session.command("/history")


@pytest.mark.parametrize(
    "line", ["/nothing", "/set x", "/unset x", "/load /no/such", "/save", "/file 'open", "/model"]
)
def test_a_failed_command_is_an_error_and_changes_nothing(session: Session, line: str) -> None:
    before = list(session.messages)
    with pytest.raises(CommandError):
        session.command(line)
    assert session.messages == before


def test_unset_without_a_name_lists_what_is_set(session: Session) -> None:
    assert session.command("/unset") == "no field is set: the server's defaults apply"
    session.command("/set temperature 0.5")
    session.command("/set user münz")
    assert session.command("/unset") == 'temperature = 0.5\nuser = "münz"'
    with pytest.raises(CommandError, match=r"^temprature is not set; did you mean temperature\?$"):
        session.command("/unset temprature")


def test_an_unknown_field_is_refused_with_the_nearest(session: Session, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no request field temprature; did you mean temperat"):
        session.command("/set temprature 0.5")
    own = {"model": "/model NAME", "messages": "conversation", "stream": "chat"}
    for name, reason in own.items():
        with pytest.raises(CommandError, match=f"{name} cannot be set: .*{reason}"):
            session.command(f"/set {name} x")
    path = tmp_path / "saved.json"
    path.write_text('{"messages": [], "settings": {"temprature": 1}}')
    before = session.messages
    with pytest.raises(CommandError, match="temprature"):
        session.command(f"/load {path}")
    assert (session.settings, session.messages) == ({}, before)


def test_a_server_of_another_kind_may_have_other_fields(session: Session) -> None:
    session.knows_all_fields = False
    assert "knows no field provider; it is sent" in session.command("/set provider x")
    assert session.settings == {"provider": "x"}
    with pytest.raises(CommandError):
        session.command("/set model x")


@pytest.mark.parametrize(
    ("text", "is_command"),
    [
        ("/system a\nb", True),
        ("/nothing", True),
        ("/usr/bin/env\nwhat is it?", False),
        ("/\n", False),
        ("a\n/help", False),
    ],
)
def test_a_pasted_text_is_a_command_if_it_names_one(
    text: str, is_command: bool, session: Session
) -> None:
    assert session.is_command(text) == is_command


def test_a_misspelt_command_names_the_nearest(session: Session) -> None:
    with pytest.raises(CommandError, match="no command /hlep; did you mean /help"):
        session.command("/hlep")
    with pytest.raises(CommandError, match="no command /xxxxxx; /help lists"):
        session.command("/xxxxxx")


def test_files_that_cannot_be_read_are_explained(session: Session, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe[]")
    (tmp_path / "y").write_text("[]")
    for line, reason in (
        ("/file /no/such", "no such file or directory"),
        (f"/file {tmp_path / 'x'}", "not a text file in UTF-8"),
        (f"/load {tmp_path / 'y'}", "is not a file that /save has written"),
    ):
        with pytest.raises(CommandError, match=reason):
            session.command(line)


def test_help_names_every_command(session: Session) -> None:
    help_text = session.command("/help")
    for name in session._actions():
        assert f"/{name}" in help_text or name == "exit"
