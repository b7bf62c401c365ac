"""Images in the terminal chat."""

import base64
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from stonechat_server.cli import main
from stonechat_server.commands.chat import media
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
    monkeypatch.setattr(media, "MAX_BYTES", {"image": 50_000})
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
    assert session.media == []
    monkeypatch.undo()
    assert Settings().max_image_size == media.MAX_BYTES["image"]
    assert Settings().max_audio_size == media.MAX_BYTES["audio"]
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


AUDIO = {
    "wav": b"RIFF\x04\0\0\0WAVEfmt ",
    "mp3": b"\xff\xfb\x90\x44",
    "flac": b"fLaC\0",
    "ogg": b"OggS\0",
}


@pytest.mark.parametrize("kind", AUDIO)
@pytest.mark.parametrize("command", ["/audio ", ""])
def test_audio_goes_in_front_of_the_next_message(
    session: Session, tmp_path: Path, kind: str, command: str
) -> None:
    """Also if the file is only dropped into the terminal."""
    path = tmp_path / "clip"
    path.write_bytes(AUDIO[kind])
    assert session.command(f"{command}{path}") == "in front of your next message: clip"
    clip, text = sent(session)
    assert (clip["type"], clip["input_audio"]["format"]) == ("input_audio", kind)
    assert base64.b64decode(clip["input_audio"]["data"]) == AUDIO[kind]
    assert text == {"type": "text", "text": "what is it?"}
    assert f"[audio/{kind}, {len(AUDIO[kind])} bytes]" in session.command("/history")


def test_images_and_audio_are_forgotten_apart(session: Session, photo: Path) -> None:
    clip = photo.parent / "clip"
    clip.write_bytes(AUDIO["wav"])
    session.command(f"/image {photo}")
    session.command(f"/audio {clip}")
    assert session.command("/image") == "no image goes in front of your next message"
    assert [part["type"] for part in session.media] == ["input_audio"]
    with pytest.raises(CommandError, match="usage: /image FILE"):
        session.command("/image")
    with pytest.raises(CommandError, match="is not a WAV, MP3, FLAC or Ogg file"):
        session.command(f"/audio {photo}")


def test_an_image_that_cannot_be_read_ends_the_command_before_a_model_loads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "no-such-model", "--prompt", "Hi", "--image", "/no/such.png"]) == 1
    assert "cannot read /no/such.png: no such file" in capsys.readouterr().err
