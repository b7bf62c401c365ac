"""The command line: flags for every setting, quick help, clear failures."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stonechat_models import AudioInfo, EmbeddingInfo, ImageInfo, SpeechInfo
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


def status_of(*words: str) -> object:
    try:
        return cli.main(words)
    except SystemExit as exit:
        return exit.code


def test_help_of_serve_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        if name == "models":  # only the TOML file has them
            continue
        flag = "MODEL" if name == "model" else "--" + name.replace("_", "-")
        assert re.search(rf"(^| |\[){flag}\b", text), flag
        assert field.description
        assert field.description in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("srve", "there is no command srve; did you mean serve?"),
        ("frobnicate", "there is no command frobnicate\n"),
        ("mine/model.gguf", "did you mean `stonechat run mine/model.gguf`?"),
        ("--port", "a command is expected before --port"),
    ],
)
def test_a_word_that_is_no_command(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word, "3"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("stonechat: ")
    assert message in output.err


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stonechat_server.commands.doctor.run", interrupt)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "stonechat doctor: stopped\n"


def test_ctrl_c_ends_a_command_that_is_still_imported() -> None:
    code = (
        "import os, signal; from stonechat_server import cli\n"
        "cli.load_command = lambda name: os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.main(['doctor'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_other_commands_only_name_the_settings_of_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["batch", "run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Computing; Memory and batching; --max-body-size" in text
    assert "--served-model-name" in text
    assert "--block-size" not in text
    assert "file with one request a line" in text


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_can_be_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert "usage: stonechat COMMAND" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli.main(["help", "keys"])
    assert "usage: stonechat keys" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "from stonechat_server import cli\n"
        "try: cli.main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
    )
    assert imported_of({"torch", "transformers", "fastapi", "uvicorn"}, code) == set()


def test_a_server_with_an_engine_process_does_not_import_torch() -> None:
    code = (
        "import stonechat_models; stonechat_models.AsyncEngine, stonechat_models.GrammarChecker\n"
        "import stonechat_models.runtime.process_runner\n"
        "from stonechat_server.commands import serve; serve._import_server()\n"
    )
    heavy = {"torch", "transformers", "scipy", "pandas"}
    assert imported_of(heavy | {"fastapi"}, code) == {"fastapi"}


def imported_of(modules: set[str], code: str) -> set[str]:
    """Run `code` in a new interpreter and return those of the modules that it imports."""
    code += f"import sys; print('IMPORTED', *{modules} & set(sys.modules))"
    paths = os.pathsep.join(str(Path(p).resolve()) for p in ("server", "models"))
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
    )
    return set(result.stdout.splitlines()[-1].split()[1:])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"stonechat \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "--port: a value of at most 65535 is expected, not 99999"),
        (["--threads", "none"], "--threads: a whole number is expected, not none"),
        (["--config", "/nonexistent.toml"], "No such file"),
        (["--dtype", "float8"], "--dtype: one of auto, float32"),
        (["--tool-format", "herms"], "--tool-format: there is no herms; did you mean hermes?\n"),
        (["--max-num", "3"], "there is no flag --max-num; did you mean --max-num-seqs?"),
    ],
)
def test_bad_flags_are_explained(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("serve", *words) != 0
    assert message in capsys.readouterr().err


def test_a_bad_variable_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STONECHAT_PORT", "x")
    assert status_of("serve") != 0
    assert "--port" in capsys.readouterr().err


def test_a_port_in_use_is_reported_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = stonechat("serve", "/nonexistent", "--port", str(port))
    assert result.returncode == 1
    assert f"port {port} is in use on 127.0.0.1" in result.stderr
    assert "Errno" not in result.stderr


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
    lines = text.splitlines()
    assert "  page      http://127.0.0.1:8000/" in lines
    assert "  API       http://127.0.0.1:8000/v1" in lines
    assert "  docs      http://127.0.0.1:8000/docs" in lines


def test_the_banner_of_an_embedding_model() -> None:
    info = EmbeddingInfo(size=32, pooling="mean", is_normalized=True)
    model = model_info(generates=False, num_blocks=0, max_model_len=48, embedding=info)
    text = start_banner(model, "name", "http://127.0.0.1:8000", False)
    assert "  vectors   32 dimensions, pooling mean, length 1" in text
    assert "  texts     up to 48 tokens" in text
    assert "KV cache" not in text
    assert text.splitlines()[-1].startswith("curl http://127.0.0.1:8000/v1/embeddings ")


def test_the_banner_says_whether_the_model_takes_images_and_audio() -> None:
    def banner(**fields: object) -> str:
        return start_banner(model_info(**fields), "name", "http://127.0.0.1:8000", False, (), 32, 8)

    assert "images" not in banner()
    assert "  images    up to 32 a request\n" in banner(images=ImageInfo(token_id=1))
    refused = banner(image_refusal="images need Pillow: pip install 'stonechat[vision]'")
    assert "  images    none: images need Pillow: pip install 'stonechat[vision]'\n" in refused
    assert "audio" not in refused
    assert "  audio     up to 8 clips a request\n" in banner(audio=AudioInfo(token_id=1))
    assert "  audio     none: no soundfile\n" in banner(audio_refusal="no soundfile")
    info = SpeechInfo(
        languages=("de", "en"), max_prompt_tokens=9, prompt_id=1, start_id=2, has_words=True
    )
    speech = banner(generates=False, num_blocks=0, audio=AudioInfo(token_id=1), speech=info)
    assert "  speech    2 languages, with times of words\n" in speech
    assert "a request" not in speech


def test_the_banner_says_where_to_put_the_key() -> None:
    url = "http://127.0.0.1:8000"
    assert "STONECHAT_API_KEY" not in start_banner(model_info(), "name", url, False)
    text = start_banner(model_info(), "name", url, True)
    assert "export STONECHAT_API_KEY=" in text


def test_curl_line_survives_the_shell() -> None:
    line = curl_line("it's", "http://127.0.0.1:1", needs_key=True).replace("curl ", "printf '%s|' ")

    def shell(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: os.environ[name] for name in ("PATH",)} | variables
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment)

    words = shell(STONECHAT_API_KEY="sk-1").stdout.split("|")
    assert "Authorization: Bearer sk-1" in words
    assert words[-2].startswith('{"model": "it\'s"')
    result = shell()
    assert result.stdout == ""
    assert "STONECHAT_API_KEY: put an API key into this variable" in result.stderr


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`stonechat serve` with the default model in a process of its own, once it is ready, and its
    output so far."""
    paths = os.pathsep.join(str(Path(p).resolve()) for p in ("server", "models"))
    words = ["serve", "--port", "0", "--kv-cache-size", "64MiB", "--ledger", "off"]
    words += ["--keys-file", "off", "--engine-process"]
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
    assert "temperature 0.2, top_p 0.9" in banner
    line = next(line for line in banner.splitlines() if line.startswith("curl"))
    answer = subprocess.run(
        ["sh", "-c", f"{line} --silent --fail"], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0
    assert '"object":"chat.completion"' in answer.stdout
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_file_problem_is_a_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise PermissionError(13, "Permission denied", "/a/file")

    monkeypatch.setattr("stonechat_server.commands.doctor.run", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "stonechat doctor: /a/file: Permission denied\n"
