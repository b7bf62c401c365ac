"""Flags of every command: help texts, messages for bad values, and the engine's flags."""

import argparse
from collections.abc import Iterator
from typing import TypeVar

import pytest
from pydantic import BaseModel

from stonechat_server.bench import command as bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.cli import COMMANDS, load_command, main
from stonechat_server.commands import keys, plan
from stonechat_server.commands.chat import command as chat
from stonechat_server.settings import ENGINE_SETTINGS
from stonechat_server.terminal.flags import flags_of
from stonechat_server.terminal.parse import add_flags, parse

T = TypeVar("T", bound=BaseModel)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def read(options: type[T], *words: str) -> T:
    return parse(argparse.ArgumentParser(prog="stonechat", allow_abbrev=False), options, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_a_help_text(name: str) -> None:
    top = argparse.ArgumentParser()
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
        ("plan --threads x", "--threads: Input should be a valid integer"),
        ("plan --bandwidth 0", "--bandwidth: Input should be greater than 0"),
        ("chat --quantize int9", "--quantize: Input should be 'auto', 'none', 'int8', 'int4' or"),
        ("chat --set top_k", "--set: 'top_k' is not NAME=VALUE"),
        ("usage --since soon", "--since: a date such as 2026-01-31 is expected"),
        ("usage --until 2026-02-30", "--until: a date such as 2026-01-31 is expected"),
        ("usage --format xml", "--format: Input should be 'table', 'json' or 'csv'"),
        ("keys add a --priority x", "--priority: Input should be a valid integer"),
        ("bench --concurrency 1,0", "--concurrency: Input should be greater than 0"),
        ("bench --rate fast", "--rate: Input should be a valid number"),
        ("bench --warmup -1", "--warmup: Input should be greater than or equal to 0"),
        ("bench --prefix-share 2", "--prefix-share: Input should be less than or equal to 1"),
        ("bench --weight-bytes x", "--weight-bytes: a size such as 500MB or 2GiB is expected"),
        ("bench --slo ttft=soon", "--slo: bounds in milliseconds, such as ttft=500,"),
        ("bench --slo tps=1", "--slo: bounds in milliseconds, such as ttft=500,"),
        ("bench --extra-body {", "--extra-body: a JSON object is expected"),
        ("bench --extra-body [1]", "--extra-body: a JSON object is expected"),
        ("bench --prompts a --sharegpt b", "--prompts and --sharegpt cannot be given together"),
        ("models pull a --config /none", "/none: [Errno 2] No such file or directory"),
    ],
)
def test_a_bad_value_is_explained_without_python_names(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stonechat {words.split()[0]}: {message}")
    assert not any(part in line for part in ("parse_", "_date", "value_error", "Value error", "<"))


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
    assert (
        spellings.keys() == bench.Options.model_fields.keys() >= BenchSettings.model_fields.keys()
    )
    assert len(set(spellings.values())) == len(spellings)
    words = ["--rate", "1,2.5", "--insecure", "--no-ignore-eos", "--extra-body", '{"a": 1}']
    options = read(bench.Options, *words, "--slo", "ttft=500", "--compare", "x", "y")
    assert options.rates == (1.0, 2.5)
    assert (options.verify_tls, options.ignore_eos) == (False, False)
    assert options.extra_body == {"a": 1}
    assert options.slo is not None
    assert options.slo.ttft == 0.5
    assert [path.name for path in options.compare] == ["x", "y"]
