"""The terminal chat against the real server, on pipes and on a pseudo-terminal."""

import asyncio
import io
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from stonechat_models import EngineConfig, EngineError
from stonechat_server.cli import main
from stonechat_server.client.synthetic_images import png
from stonechat_server.commands.chat import command
from stonechat_server.commands.chat.api import ChatError
from stonechat_server.commands.chat.own_server import OwnServer, own_server
from stonechat_server.settings import Settings
from tests.server import live
from tests.server.catalog.scripted_models import models
from tests.server.fake_engine import ByteTokenizer, FakeEngine, endless, model_info, text_script
from tests.server.fake_media import AUDIO, HEARD, TEMPLATE, FakeMediaProcessor, seeing_engine, wav
from tests.server.live_server import LiveServer, live_server

KEY = "sk-chat"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(Settings(api_key=KEY)) as live:
        yield live


def chat(server: LiveServer, *flags: str) -> int:
    return main(["chat", "--url", server.url + "v1", "--api-key", KEY, *flags])


def test_one_question(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(server, "--prompt", "Hi", "--system", "Be brief.", "--set", "top_k=3") == 0
    assert capsys.readouterr().out == "Hello wörld 👋\n"
    assert "system\nBe brief." in server.engine.prompt
    assert server.engine.requests[-1].params.top_k == 3


def test_a_conversation_from_a_pipe(
    server: LiveServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "first\n/set temperature 0.25\nsecond \\\nline\n/nothing\n/models\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert chat(server) == 0
    output = capsys.readouterr().out
    assert output.count("Hello wörld 👋") == 2
    assert "there is no command /nothing" in output
    assert "tiny-test" in output
    for part in ("user\nfirst", "assistant\nHello wörld 👋", "user\nsecond \nline"):
        assert part in server.engine.prompt
    assert server.engine.requests[-1].params.temperature == 0.25


def test_a_refused_question_is_reported_and_forgotten(
    server: LiveServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("/set temperature 9\none\n/unset temperature\ntwo\n")
    )
    assert chat(server) == 0
    assert "(temperature)" in capsys.readouterr().out
    assert "one" not in server.engine.prompt


def test_images_go_to_a_model_that_takes_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(png(8, 8, "a"))
    engine = seeing_engine(text_script("Colours."))
    with live.live_server(engine) as server:
        url = ["--url", f"{server.url}/v1"]
        assert main(["chat", *url, "--image", str(image), "--prompt", "What is it?"]) == 0
        assert len(engine.requests[-1].media) == 1
        monkeypatch.setattr("sys.stdin", io.StringIO(f"/image {image} {image}\nand these?\n"))
        assert main(["chat", *url]) == 0
    assert len(engine.requests[-1].media) == 2
    assert capsys.readouterr().out.count("Colours.") == 2


def test_a_model_of_text_is_asked_nothing_with_images(
    server: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(png(8, 8, "a"))
    before = len(server.engine.requests)
    assert chat(server, "--image", str(image), "--prompt", "What is it?") == 1
    assert "tiny-test takes no images" in capsys.readouterr().err
    assert len(server.engine.requests) == before


def test_audio_goes_to_a_model_that_hears(
    server: LiveServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And not to one that does not."""
    clip = tmp_path / "clip"
    clip.write_bytes(wav())
    assert chat(server, "--audio", str(clip), "--prompt", "What is said?") == 1
    assert "tiny-test takes no audio" in capsys.readouterr().err
    engine = FakeEngine(text_script("Words."), model_info(audio=AUDIO), ByteTokenizer(TEMPLATE))
    engine.media_processor = FakeMediaProcessor()
    with live.live_server(engine) as other:
        url = ["--url", f"{other.url}/v1"]
        assert main(["chat", *url, "--audio", str(clip), "--prompt", "What is said?"]) == 0
    assert engine.prompt.count(HEARD) == 1
    assert "Words." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--url", "http://127.0.0.1:9"],
            "no server answers at 127.0.0.1:9: start one with",
        ),
        (["--url", "ftp://x"], "not an http"),
        (
            ["http://x/v1"],
            "http://x/v1 is no model; did you mean `stonechat chat --url http://x/v1`",
        ),
        (["/no/such/model.gguf"], "there is no file or folder /no/such/model.gguf"),
    ],
)
def test_no_model_to_talk_to(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *flags, "--prompt", "x"]) == 1
    assert message in capsys.readouterr().err


def test_a_refused_prompt_is_no_answer(
    server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(server, "nope", "--prompt", "Hi") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("404: The model 'nope' does not exist here.")


def test_a_url_that_is_no_api_says_what_one_is(
    server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--url", server.url + "docs", "--api-key", KEY, "--prompt", "x"]) == 1
    error = capsys.readouterr().err
    assert "/docs/models of this server is no list of models: correct the URL" in error
    assert main(["chat", "--url", server.url.replace("http", "https"), "--prompt", "x"]) == 1
    assert "does not speak HTTPS: use an http:// URL" in capsys.readouterr().err


def test_flags_of_a_model_here_are_not_for_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:1/v1", "--threads", "2"]) == 1
    assert "--threads is for a model that is loaded here" in capsys.readouterr().err


def test_a_wrong_key_is_an_error(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url + "v1"
    assert main(["chat", "--url", url, "--api-key", "wrong", "--prompt", "x"]) == 1
    assert "401" in capsys.readouterr().err


def test_a_private_server_needs_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(api_key="sk-of-another", keys_file="/no/such/file")  # for `serve`
    with own_server(FakeEngine(), settings) as private:
        assert ask(private) == 0
        assert "Hello wörld" in capsys.readouterr().out
        for key in ("sk-of-another", ""):
            with pytest.raises(ChatError, match=r"^401: .* Give a key with --api-key"):
                ask(replace(private, key=key))


def ask(server: OwnServer) -> int:
    options = command.TalkOptions(prompt="x", settings=Settings())
    return asyncio.run(command._talk(options, Console(), server, None))


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the server has a port there")
def test_a_private_server_has_no_port_and_leaves_nothing() -> None:
    with own_server(FakeEngine(), Settings()) as private:
        assert private.unix_socket is not None
        path = Path(private.unix_socket)
        assert path.is_socket()
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()


def test_a_private_server_has_a_port_where_a_socket_has_too_long_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with own_server(FakeEngine(), Settings()) as private:
        assert private.unix_socket is None
        assert private.url.startswith("http://127.0.0.1:")
        assert ask(private) == 0
        with pytest.raises(ChatError, match=r"^401: "):
            ask(replace(private, key=""))
    assert list(folder.iterdir()) == []


def test_a_private_server_without_any_socket_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_server", refuse)
    with (
        pytest.raises(EngineError, match=r"^the chat cannot open a socket: .*Too many open files"),
        own_server(FakeEngine(), Settings()),
    ):
        pass


@pytest.mark.parametrize("words", [["run", "mine"], ["chat", "mine"]])
def test_a_model_is_loaded_here_and_asked(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []

    def load(config: EngineConfig, progress: object) -> FakeEngine:
        loaded.append((config.model, config.quantize))
        return FakeEngine()

    monkeypatch.setattr("stonechat_models.AsyncEngine.from_config", load)
    assert main([*words, "--quantize", "int8", "--prompt", "Hi", "--set", "top_k=3"]) == 0
    assert capsys.readouterr().out == "Hello wörld 👋\n"
    assert loaded == [("mine", "int8")]
    assert main([*words, "--prompt", "Hi", "--set", "topk=3"]) == 1
    error = capsys.readouterr().err
    assert error == f"stonechat {words[0]}: there is no request field topk; did you mean top_k?\n"


def test_a_model_that_only_embeds_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine(model=model_info(generates=False))
    monkeypatch.setattr("stonechat_models.AsyncEngine.from_config", lambda *_: engine)
    assert main(["run", "mine", "--prompt", "Hi"]) == 1
    assert "is for embeddings: it cannot chat" in capsys.readouterr().err


class Screen:
    """What a program writes to a pseudo-terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._output = ""

    def until(self, text: str, seconds: float = 60.0) -> str:
        """Take the output up to the next `text`."""
        assert self.shows(text, seconds), f"{text!r} never came: {self._output!r}"
        before, _, self._output = self._output.partition(text)
        return before

    def shows(self, text: str, seconds: float) -> bool:
        """Whether `text` comes within this time. It is not taken."""
        end = time.monotonic() + seconds
        while text not in self._output and time.monotonic() < end:
            if select.select([self._terminal], [], [], 0.2)[0]:
                self._output += os.read(self._terminal, 65536).decode("utf-8", "replace")
        return text in self._output


def test_in_a_terminal_an_answer_is_rendered_and_can_be_stopped(server: LiveServer) -> None:
    ours, theirs = pty.openpty()
    screen = Screen(ours)
    flags = ["--url", server.url + "v1", "--api-key", KEY]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "stonechat_server.cli", "chat", *flags],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        screen.until("Ctrl-D leaves")
        server.engine.script = text_script("**bold** text")
        os.write(ours, b"go\n")
        output = screen.until("1 generated")
        assert "\x1b[1mbold" in output
        server.engine.script = endless()
        os.write(ours, b"again\n")
        screen.until("word word")
        process.send_signal(signal.SIGINT)
        screen.until("stopped")
        server.engine.script = text_script("after")
        screen.until("> ")
        os.write(ours, b"\x1b[200~three\nmarked\nlines\x1b[201~\n")
        screen.until("prompt tokens")  # the figures; the prompt follows them
        screen.until("> ")
        os.write(ours, b"three\nplain\nlines\n")
        screen.until("prompt tokens")
        screen.until("> ")
        for _ in range(6):  # Python may miss one that comes before it waits for input
            process.send_signal(signal.SIGINT)  # at the prompt it does not end the program
            if screen.shows("Ctrl-D leaves", 10.0):
                break
        screen.until("Ctrl-D leaves")
        os.write(ours, b"/quit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)
    assert len(server.engine.aborted) == 1
    for kind in ("marked", "plain"):
        assert f"user\nthree\n{kind}\nlines" in server.engine.prompt
    server.engine.script = FakeEngine().script


def test_a_chat_switches_between_several_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    them = models({"first": 4, "second": 4})
    lines = "hi\n/models\n/model secnd\n/model second\nagain\n/models\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with live_server(Settings(api_key=KEY), them.catalog) as server:
        assert chat(server) == 0
    output = capsys.readouterr().out
    assert "* first  loaded\n  second  unloaded" in output
    assert "the server has no model secnd; did you mean second?" in output
    assert "talking to second" in output
    assert "  first  loaded\n* second  loaded" in output
    assert them.loader.started == ["first", "second"]
