"""The terminal chat against the real server, on pipes and on a pseudo-terminal."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from stonechat_server.cli import main
from stonechat_server.commands.chat.own_server import own_server
from stonechat_server.settings import Settings
from tests.server.fake_engine import FakeEngine, text_script
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--url", "http://127.0.0.1:9"], "cannot connect"),
        (["--url", "ftp://x"], "not an http"),
        (["/no/such/model.gguf"], "there is no file or folder /no/such/model.gguf"),
    ],
)
def test_no_model_to_talk_to(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *flags, "--prompt", "x"]) == 1
    assert message in capsys.readouterr().err


def test_a_wrong_key_is_an_error(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url + "v1"
    assert main(["chat", "--url", url, "--api-key", "wrong", "--prompt", "x"]) == 1
    assert "401" in capsys.readouterr().err


def test_a_private_server_needs_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    with own_server(FakeEngine(), Settings()) as private:
        assert main(["chat", "--url", private.url, "--api-key", "", "--prompt", "x"]) == 1
        assert main(["chat", "--url", private.url, "--api-key", private.key, "--prompt", "x"]) == 0
    assert "Hello wörld" in capsys.readouterr().out


def read_until(terminal: int, text: str, seconds: float = 20.0) -> str:
    output, end = "", time.monotonic() + seconds
    while text not in output:
        assert time.monotonic() < end, f"{text!r} never came: {output!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            output += os.read(terminal, 65536).decode("utf-8", "replace")
    return output


def test_in_a_terminal_an_answer_is_rendered_and_can_be_stopped(server: LiveServer) -> None:
    ours, theirs = pty.openpty()
    flags = ["--url", server.url + "v1", "--api-key", KEY]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "stonechat_server.cli", "chat", *flags],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        read_until(ours, "Ctrl-D leaves")
        server.engine.script = text_script("**bold** text")
        os.write(ours, b"go\n")
        output = read_until(ours, "1 generated")
        assert "\x1b[1mbold" in output
        server.engine.script = text_script(*["word "] * 400, pause=0.05)
        os.write(ours, b"again\n")
        read_until(ours, "word word")
        process.send_signal(signal.SIGINT)
        read_until(ours, "stopped")
        server.engine.script = text_script("after")
        os.write(ours, b"more\n")
        read_until(ours, "prompt tokens")  # the figures; the prompt follows them
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)  # at the prompt it does not end the program
        read_until(ours, "Ctrl-D leaves")
        os.write(ours, b"/quit\n")
        assert process.wait(10) == 0
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)
    assert len(server.engine.aborted) == 1
    server.engine.script = FakeEngine().script
