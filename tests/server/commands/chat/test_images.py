"""Images in the terminal chat."""

import base64
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from stonechat_server.cli import main
from stonechat_server.commands.chat import images
from stonechat_server.commands.chat.session import CommandError, Session
from stonechat_server.settings import Settings

HEADS = {
    "png": b"\x89PNG\r\n\x1a\n...",
    "jpeg": b"\xff\xd8\xff\xe0...",
    "gif": b"GIF89a...",
    "webp": b"RIFF\x04\0\0\0WEBPVP8 ",
}


@pytest.fixture
def session() -> Session:
    return Session("m")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    path.write_bytes(HEADS["png"])
    return path


def sent(session: Session) -> list[Any]:
    session.ask("what is it?")
    content = session.turns[-1]["content"]
    assert isinstance(content, list)
    return content


@pytest.mark.parametrize("kind", HEADS)
def test_an_image_goes_in_front_of_the_next_message_only(
    session: Session, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "no-extension"
    path.write_bytes(HEADS[kind])
    assert session.command(f"/image {path}") == "in front of your next message: no-extension"
    image, text = sent(session)
    head, _, data = image["image_url"]["url"].partition(",")
    assert (image["type"], head) == ("image_url", f"data:image/{kind};base64")
    assert base64.b64decode(data) == HEADS[kind]
    assert text == {"type": "text", "text": "what is it?"}
    session.ask("and?")
    assert session.turns[-1]["content"] == "and?"


FORMS = {
    "quoted": lambda path: f"/image {shlex.quote(str(path))}",
    "escaped": lambda path: f"/image {str(path).replace(' ', chr(92) + ' ')}",
    "as it stands": lambda path: f"/image {path}",
    "url": lambda path: f"/image {path.as_uri()}",
    "home": lambda path: f"/image ~/{path.name}",
    "dropped": lambda path: str(path),
    "dropped with escapes": lambda path: str(path).replace(" ", "\\ "),
}


@pytest.mark.parametrize("form", FORMS)
def test_paths_are_read_as_terminals_write_them(
    session: Session, photo: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(photo.parent))
    line = FORMS[form](photo)
    assert session.is_command(line)
    assert "my photo.png" in session.command(line)
    assert len(sent(session)) == 2


def test_several_images_keep_their_order_and_can_be_forgotten(
    session: Session, tmp_path: Path
) -> None:
    for kind in ("gif", "png"):
        (tmp_path / kind).write_bytes(HEADS[kind])
    session.command(f"/image {tmp_path / 'gif'} {tmp_path / 'png'}")
    session.command(f"/image {tmp_path / 'gif'}")
    kinds = [part["image_url"]["url"][11:14] for part in sent(session)[:-1]]
    assert kinds == ["gif", "png", "gif"]
    for forget in ("/image", "/clear"):
        session.command(f"/image {tmp_path / 'gif'}")
        session.command(forget)
        session.ask("text")
        assert session.turns[-1]["content"] == "text"


def test_files_that_are_no_images_are_explained(
    session: Session, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photo.parent / "a.heic").write_bytes(b"....ftypheic")
    (photo.parent / "large").write_bytes(HEADS["png"])
    os.truncate(photo.parent / "large", 90_000)
    monkeypatch.setattr(images, "MAX_BYTES", 50_000)
    for rest, reason in (
        ("", "usage: /image FILE"),
        ("/no/such.png", r"cannot read /no/such\.png: no such file"),
        (str(photo.parent), "is a directory"),
        (f"{photo.parent}/a.heic", "is not a PNG, JPEG, WebP or GIF file"),
        (f"{photo.parent}/large", "too large: it has 90.0 kB, and 50.0 kB is the most"),
        ("'open", "no closing quotation"),
        (f"'{photo}' /no/such.png", "no such file"),
        ("x" * 5000, "name too long"),
    ):
        with pytest.raises(CommandError, match=reason):
            session.command(f"/image {rest}".rstrip())
    assert session.images == []
    monkeypatch.undo()
    assert Settings().max_image_size == images.MAX_BYTES
    with pytest.raises(CommandError, match="there is no command /no/such"):
        session.command("/no/such.png")


def test_images_are_saved_with_the_conversation_and_named_in_its_history(
    session: Session, photo: Path
) -> None:
    session.command(f"/image {photo}")
    sent(session)
    path = photo.parent / "chat.json"
    session.command(f"/save {path}")
    other = Session("m")
    other.command(f"/load {path}")
    assert other.messages == session.messages
    assert other.command("/history") == "user: [image/png, 11 bytes]\nwhat is it?"


def test_an_image_that_cannot_be_read_ends_the_command_before_a_model_loads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "no-such-model", "--prompt", "Hi", "--image", "/no/such.png"]) == 1
    assert "cannot read /no/such.png: no such file" in capsys.readouterr().err
