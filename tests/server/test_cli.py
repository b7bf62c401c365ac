"""The command line: flags for every setting, quick help, clear failures."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stonechat_server import cli
from stonechat_server.commands.banner import curl_line, start_banner
from stonechat_server.settings import Settings
from tests.server.fake_engine import model_info

STONECHAT = [sys.executable, "-m", "stonechat_server.cli"]


def stonechat(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(Path(p).resolve()) for p in ("server", "models"))
    variables = os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"} | environment
    return subprocess.run(
        [*STONECHAT, *words], capture_output=True, text=True, env=variables, timeout=60
    )


def test_help_of_serve_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        flag = "MODEL" if name == "model" else "--" + name.replace("_", "-")
        assert re.search(rf"(^| |\[){flag}\b", text), flag
        assert field.description
        assert field.description in text


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from stonechat_server import cli\n"
        "try: cli.main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', *{'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules))"
    )
    paths = os.pathsep.join(str(Path(p).resolve()) for p in ("server", "models"))
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
    )
    assert result.stdout.splitlines()[-1].strip() == "HEAVY"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"stonechat \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "--port: Input should be less than or equal to 65535"),
        (["--threads", "none"], "--threads: Input should be a valid integer"),
        (["--config", "/nonexistent.toml"], "No such file"),
        (["--dtype", "float8"], "--dtype: Input should be 'auto', 'float32'"),
        (["--max-num", "3"], "unrecognized arguments"),
    ],
)
def test_bad_flags_are_explained(words: list[str], message: str) -> None:
    result = stonechat("serve", *words)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_variable_is_explained() -> None:
    result = stonechat("serve", STONECHAT_PORT="x")
    assert result.returncode != 0
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_reported_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = stonechat("serve", "/nonexistent", "--port", str(port))
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_a_missing_model_is_explained() -> None:
    result = stonechat("serve", "/nonexistent/model.gguf", "--port", "0", "--ledger", "off")
    assert result.returncode == 1
    assert "stonechat serve: " in result.stderr
    assert "Traceback" not in result.stderr


def test_the_banner_shows_what_was_chosen() -> None:
    text = start_banner(model_info(quantization="Q4_1"), "name", "http://127.0.0.1:8000", False)
    assert "warning" not in text
    model = model_info(adapter="mine (rank 8, 2 weights)")
    warned = start_banner(model, "name", "http://127.0.0.1:8000", False, ["mind this", "and that"])
    assert "  warning   mind this\n  warning   and that" in warned
    assert "  adapter   mine (rank 8, 2 weights), merged into the weights" in warned
    for fact in ("cpu", "float32", "Q4_1", "16,384 tokens", "4,096 tokens", "4.0 requests"):
        assert fact in text


def test_curl_line_survives_the_shell() -> None:
    words = shlex.split(curl_line("it's", "http://127.0.0.1:1", needs_key=True))
    assert words[-1].startswith('{"model": "it\'s"')
    assert "Authorization: Bearer $STONECHAT_API_KEY" in words


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`stonechat serve` with the default model, once it is ready, and its output so far."""
    paths = os.pathsep.join(str(Path(p).resolve()) for p in ("server", "models"))
    words = ["serve", "--port", "0", "--kv-cache-size", "64MiB", "--ledger", "off"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*STONECHAT, *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("curl"):
                break
        try:
            yield process, "".join(lines)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_the_printed_curl_line_works_and_sigterm_ends_the_server(
    started: tuple[subprocess.Popen[str], str], default_model_files: object
) -> None:
    process, banner = started
    assert "requests of full length fit" in banner
    line = next(line for line in banner.splitlines() if line.startswith("curl"))
    answer = subprocess.run(
        ["sh", "-c", f"{line} --silent --fail"], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0
    assert '"object":"chat.completion"' in answer.stdout
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
