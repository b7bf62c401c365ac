"""Grammars are checked in processes that limits end, and quick checks wait for no slow one."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from stonechat_models.errors import (
    CostlyGrammarError,
    EngineDeadError,
    EngineError,
    GrammarError,
    TooManyChecksError,
)
from stonechat_models.grammar.checker import SMALL_CHARS, GrammarChecker
from stonechat_models.types import GrammarSpec

HANG_SECONDS = 60.0


def multiple_of(number: int, padding: int = 0) -> GrammarSpec:
    """A small schema that takes seconds and hundreds of megabytes to compile."""
    schema = {"type": "integer", "multipleOf": number, "description": "x" * padding}
    return GrammarSpec("json_schema", json.dumps(schema))


def linked(num_links: int) -> GrammarSpec:
    """Rules that each end in the next one."""
    rules = "".join(f'r{i}: "a" r{i + 1} | "b" r{i + 1}\n' for i in range(num_links))
    return GrammarSpec("lark", f'start: r0\n{rules}r{num_links}: "c"\n')


@pytest.fixture
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker()
    yield checker
    checker.close()


def error_of(checker: GrammarChecker, spec: GrammarSpec) -> str | None:
    error = checker.submit(spec).result(HANG_SECONDS)
    return None if error is None else f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (GrammarSpec("regex", "(ab|cd)*" * 100), None),
        (GrammarSpec("lark", 'start: "a" <[200000]>'), None),
        (GrammarSpec("regex", "a" * 16_385), "GrammarError: a regular expression may have at most"),
        (GrammarSpec("lark", "start: nothing"), "GrammarError: "),
        (linked(2_000), "CostlyGrammarError: it is nested too deeply"),
    ],
)
def test_verdicts(checker: GrammarChecker, spec: GrammarSpec, error: str | None) -> None:
    found = error_of(checker, spec)
    assert found == error or (found or "").startswith(error or "no error")
    assert error_of(checker, GrammarSpec("regex", "ab")) is None


def test_a_check_ends_at_its_limit_of_time() -> None:
    checker = GrammarChecker(quick_seconds=0.05, max_seconds=0.2)
    found = error_of(checker, multiple_of(999_983))
    assert found == "CostlyGrammarError: it takes too long to compile (the limit is 0.2 s)"
    checker.close()


def test_a_check_ends_at_its_limit_of_memory() -> None:
    checker = GrammarChecker(max_seconds=100.0)
    options = GrammarSpec("regex", "a?" * 8_000 + "b")
    found = error_of(checker, options)
    assert found == "CostlyGrammarError: it takes too much memory to compile (the limit is 128 MiB)"
    checker.close()


def test_quick_checks_do_not_wait_for_slow_ones(checker: GrammarChecker) -> None:
    slow = [checker.submit(multiple_of(999_000 + i, SMALL_CHARS)) for i in range(20)]
    small = [checker.submit(multiple_of(999_500 + i)) for i in range(3)]
    assert error_of(checker, GrammarSpec("lark", 'start: "a"')) is None
    assert not any(check.done() for check in (slow[-1], *small))


def test_equal_checks_are_one(checker: GrammarChecker) -> None:
    first = checker.submit(multiple_of(999_983, SMALL_CHARS))
    assert checker.submit(multiple_of(999_983, SMALL_CHARS)) is first


def test_the_number_of_checks_is_limited(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stonechat_models.grammar.checker.MAX_CHECKS", 2)
    slow = [multiple_of(999_000 + i, SMALL_CHARS) for i in range(3)]
    first, second = checker.submit(slow[0]), checker.submit(slow[1])
    assert checker.submit(slow[1]) is second
    with pytest.raises(TooManyChecksError):
        checker.submit(slow[2])
    checker.drop(slow[1])
    assert second.cancelled()
    assert not first.cancelled()
    assert not checker.submit(slow[2]).done()


def test_a_dropped_check_leaves_the_queue(checker: GrammarChecker) -> None:
    specs = [multiple_of(999_000 + i, SMALL_CHARS) for i in range(1_000)]
    first = checker.submit(specs[0])
    for spec in specs[1:]:
        checker.submit(spec)
        checker.drop(spec)
    assert len(checker._slow._waiting) <= 1
    assert not first.cancelled()


def test_a_check_that_is_dropped_while_it_runs_has_no_second_try(checker: GrammarChecker) -> None:
    spec = multiple_of(999_983)
    check = checker.submit(spec)
    deadline = time.monotonic() + HANG_SECONDS
    while checker._quick.remove(spec) and time.monotonic() < deadline:
        checker._quick.put(spec)
        time.sleep(0.001)
    checker.drop(spec)
    with pytest.raises(CancelledError):
        check.result(HANG_SECONDS)
    assert not checker._running


def test_a_dropped_check_can_be_submitted_again(checker: GrammarChecker) -> None:
    checker.submit(multiple_of(999_000))
    spec = GrammarSpec("lark", 'start: "a"')
    checker.submit(spec)
    checker.drop(spec)
    checker.drop(spec)
    assert error_of(checker, spec) is None


def test_closing_ends_all_checks_at_once(checker: GrammarChecker) -> None:
    assert error_of(checker, GrammarSpec("regex", "ab")) is None
    checks = [checker.submit(multiple_of(999_000 + i, SMALL_CHARS)) for i in range(20)]
    checker.close()
    for check in checks:
        with pytest.raises(EngineDeadError):
            check.result(HANG_SECONDS)
    with pytest.raises(EngineDeadError):
        checker.submit(GrammarSpec("regex", "a"))


def test_a_process_that_was_killed_is_started_again(checker: GrammarChecker) -> None:
    assert error_of(checker, GrammarSpec("regex", "ab")) is None
    checker._quick._process.end()
    assert error_of(checker, GrammarSpec("regex", "abc")) is None
    process = checker._quick._process._process
    assert process is not None
    process.kill()
    process.wait()
    assert error_of(checker, GrammarSpec("regex", "ab")) is None


def test_a_failure_of_the_check_is_not_an_error_of_the_grammar(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent")
    with pytest.raises(Exception, match="cannot be checked") as caught:
        checker.submit(GrammarSpec("regex", "ab")).result(HANG_SECONDS)
    assert not isinstance(caught.value, CostlyGrammarError)
    assert "a grammar cannot be checked" in caplog.text


def test_a_process_that_cannot_run_is_no_error_of_the_grammar(
    checker: GrammarChecker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(EngineError, match="cannot be checked") as caught:
        checker.submit(GrammarSpec("regex", "ab")).result(HANG_SECONDS)
    assert not isinstance(caught.value, GrammarError)
    assert "a grammar cannot be checked" in caplog.text
