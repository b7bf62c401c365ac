"""Flags of every command: help texts, messages for bad values, and the engine's flags."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import BaseModel

from stonechat_server.bench import command as bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.cli import COMMANDS, load_command, main
from stonechat_server.commands import keys, models, plan, serve
from stonechat_server.commands.chat import command as chat
from stonechat_server.model_settings import ENGINE_SETTINGS
from stonechat_server.terminal.flags import flags_of
from stonechat_server.terminal.parse import add_flags, parse
from stonechat_server.terminal.parser import Parser

T = TypeVar("T", bound=BaseModel)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def read(options: type[T], *words: str) -> T:
    return parse(Parser("stonechat"), options, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_a_help_text(name: str) -> None:
    top = Parser("stonechat")
    add_flags(top, load_command(name).Options)
    for parser in parsers(top):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                assert all(choice.help for choice in action._choices_actions)
            else:
                assert action.help, (parser.prog, action.dest)
        assert parser.format_help()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan --kv-cache-size many", "--kv-cache-size: a size such as 500MB or 2GiB is expected"),
        ("plan --kv-cache-size 2XB", "--kv-cache-size: a size such as 500MB or 2GiB is expected"),
        ("plan --threads x", "--threads: a whole number is expected, not x"),
        ("plan --bandwidth 0", "--bandwidth: a value of more than 0 is expected, not 0"),
        ("chat --quantize int9", "--quantize: one of auto, none, int8, int4, fp8 is expected"),
        ("chat --set top_k", "--set: 'top_k' is not NAME=VALUE"),
        ("usage --since soon", "--since: a date such as 2026-01-31 is expected"),
        ("usage --until 2026-02-30", "--until: a date such as 2026-01-31 is expected"),
        ("usage --format xml", "--format: one of table, json, csv is expected, not xml"),
        ("keys add a --priority x", "--priority: a whole number is expected, not x"),
        ("bench --concurrency 1,0", "--concurrency: a value of more than 0 is expected, not 0"),
        ("bench --rate fast", "--rate: a number is expected, not fast"),
        ("bench --warmup -1", "--warmup: a value of at least 0 is expected, not -1"),
        ("bench --prefix-share 2", "--prefix-share: a value of at most 1 is expected, not 2"),
        ("bench --weight-bytes x", "--weight-bytes: a size such as 500MB or 2GiB is expected"),
        ("bench --slo ttft=soon", "--slo: bounds in milliseconds, such as ttft=500,"),
        ("bench --slo tps=1", "--slo: bounds in milliseconds, such as ttft=500,"),
        ("bench --extra-body {", "--extra-body: a JSON object such as"),
        ("bench --extra-body [1]", "--extra-body: a JSON object such as"),
        ("bench --prompts a --sharegpt b", "--prompts and --sharegpt cannot be given together"),
        ("bench --json /no/such/x", "--json: there is no folder /no/such"),
        ("check --json /", "--json: / is a folder; name a file"),
        ("keys add a --max-concurrency 0", "--max-concurrency: a value of at least 1 is expected"),
        ("models pull a --config /none", "cannot read /none: No such file or directory"),
    ],
)
def test_a_bad_value_is_explained_without_python_names(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stonechat {words.split()[0]}: {message}")
    python = ("parse_", "_date", "value_error", "Value error", "<", "Input should")
    assert not any(part in line for part in python)


@pytest.mark.parametrize("options", [plan.Options, chat.Options])
def test_the_engine_is_set_with_the_flags_of_serve(
    options: type[plan.Options | chat.Options],
) -> None:
    words = ["--quantize", "int8", "--max-num-seqs", "3", "--kv-cache-size", "1 GiB", "--eager"]
    settings = read(options, *words, "--no-prefix-caching").settings
    config = settings.engine_config()
    assert (config.quantize, config.max_num_seqs, config.eager) == ("int8", 3, True)
    assert (config.kv_cache_bytes, config.prefix_caching) == (2**30, False)
    names = {flag.name for flag in flags_of(options)}
    assert set(ENGINE_SETTINGS) <= names


def test_settings_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STONECHAT_DTYPE", "float16")
    monkeypatch.setenv("STONECHAT_QUANTIZE", "int4")
    settings = read(plan.Options, "--quantize", "int8").settings
    assert (settings.dtype, settings.quantize) == ("float16", "int8")


def test_an_own_variable_applies_without_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-outside")
    assert read(chat.Options).api_key == "from-outside"
    assert read(chat.Options, "--api-key", "").api_key == ""


def test_an_action_has_options_of_its_own() -> None:
    options = read(keys.Options, "--keys-file", "f", "add", "alice", "--models", "a, b")
    assert isinstance(options.action, keys.Add)
    assert (options.action.name, options.action.models) == ("alice", ("a", "b"))


def test_every_setting_of_a_benchmark_is_a_flag() -> None:
    spellings = {flag.name: flag.spelling for flag in flags_of(bench.Options)}
    engine = {"config", *ENGINE_SETTINGS} - {"model"}
    fields = (bench.Options.model_fields.keys() - {"settings"}) | engine | {"model"}
    assert spellings.keys() == fields >= BenchSettings.model_fields.keys()
    assert len(set(spellings.values())) == len(spellings)
    words = ["--rate", "1,2.5", "--insecure", "--no-ignore-eos", "--extra-body", '{"a": 1}']
    options = read(bench.Options, *words, "--slo", "ttft=500", "--compare", "x", "y")
    assert options.rates == (1.0, 2.5)
    assert (options.verify_tls, options.ignore_eos) == (False, False)
    assert options.extra_body == {"a": 1}
    assert options.slo is not None
    assert options.slo.ttft == 0.5
    assert [path.name for path in options.compare] == ["x", "y"]


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines that a command line with a mistake prints."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve --porrt 1", "stonechat serve: there is no flag --porrt; did you mean --port?"),
        ("serve --prot=1", "stonechat serve: there is no flag --prot; did you mean --port?"),
        ("serve --zzzzzzzz", "stonechat serve: there is no flag --zzzzzzzz"),
        ("serve --port", "stonechat serve: --port needs a value"),
        ("serve --eager=yes", "stonechat serve: --eager/--no-eager takes no value, but has 'yes'"),
        ("plan a b", "stonechat plan: there is one word too many: b"),
        ("serve -c 8192", "stonechat serve: there is no flag -c: here it is --max-model-len"),
        (
            "serve --jinja",
            "stonechat serve: there is no flag --jinja: what it switches on is always on here",
        ),
        ("bench -c 8192", "stonechat bench: there is no flag -c: here it is --max-model-len"),
        ("serve -m m.gguf", "stonechat serve: there is no flag -m: give MODEL without it"),
        ("serve -hf a/b", "stonechat serve: there is no flag -hf: give MODEL without it"),
        ("serve --model m", "stonechat serve: there is no flag --model: give MODEL without it"),
        (
            "bench http://x/v1",
            "stonechat bench: there is one word too many: http://x/v1; did",
        ),
        ("plan --quantise int8", "stonechat plan: there is no flag --quantise; did you mean"),
        ("keys ad alice", "stonechat keys: there is no action ad; did you mean add?"),
        ("models zzz", "stonechat models: there is no action zzz; there are list, pull, rm, alias"),
        ("keys add", "stonechat keys add: NAME is missing"),
        ("keys add a --prioriti 1", "stonechat keys: there is no flag --prioriti; did you mean"),
        ("models rm", "stonechat models rm: MODEL is missing"),
    ],
)
def test_a_misspelt_command_line_is_explained_first(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = failure(capsys, *words.split())
    assert first.startswith(message)
    assert second.startswith("`stonechat ")
    assert second.endswith(" --help` shows what it accepts.")


def test_a_command_that_takes_no_model_asks_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "bench", "-m", "a")[0] == "stonechat bench: there is no flag -m"


def test_the_nearest_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = failure(capsys, "plan", "--quantize", "int9")
    assert line.endswith("int8, int4, fp8 is expected, not int9; did you mean int8?")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_is_one_line(name: str) -> None:
    parser = Parser(f"stonechat {name}")
    add_flags(parser, load_command(name).Options)
    (line,) = parser.format_usage().splitlines()
    assert line.startswith(f"usage: stonechat {name} [--flag …]")


def test_the_source_of_a_bad_value_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('threads = "many"\nquantise = "int8"\n')
    lines = failure(capsys, "serve", "--config", str(file))
    threads = f"--threads (threads in {file}): a whole number is expected, not many"
    unknown = f"{file}: there is no setting quantise; did you mean quantize?"
    assert lines == [f"stonechat serve: {threads}", f"stonechat serve: {unknown}"]
    monkeypatch.setenv("STONECHAT_PORT", "high")
    (line,) = failure(capsys, "serve")
    assert line.startswith("stonechat serve: --port (from the variable STONECHAT_PORT): a whole")
    file.write_text("= 3")
    (line,) = failure(capsys, "serve", "--config", str(file))
    assert line.startswith(f"stonechat serve: {file} is not valid TOML: ")


def test_a_secret_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("api_key = [12345]")
    (line,) = failure(capsys, "serve", "--config", str(file))
    assert "--api-key" in line
    assert "12345" not in line.replace(str(file), "")


def test_flags_of_a_command_may_follow_its_action() -> None:
    for words in (("--keys-file", "f", "list"), ("list", "--keys-file", "f")):
        assert read(keys.Options, *words).settings.keys_file == Path("f")


@pytest.mark.parametrize("options", [keys.Options, models.Options])
def test_a_command_that_can_list_lists_without_an_action(
    options: type[keys.Options | models.Options],
) -> None:
    assert type(read(options).action).__name__ == "List"


def test_many_choices_are_listed_in_the_help_only() -> None:
    flags = {flag.name: flag for flag in flags_of(serve.Options)}
    assert flags["dtype"].metavar == "{auto,float32,bfloat16,float16}"
    tool_format = flags["tool_format"]
    assert tool_format.metavar == "FORMAT"
    units = {"files_per_key": "N", "image_memory": "SIZE", "shutdown_grace": "SECONDS"}
    assert {name: flags[name].metavar for name in units} == units
    assert flags["queue_timeout"].default == "120"
    assert flags["kept_responses_age"].default == "2592000"
    assert f"; one of {', '.join(tool_format.choices)}" in tool_format.meaning
    assert "hermes" in tool_format.choices
