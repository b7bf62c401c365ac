"""The exit status of `stonechat bench`, and what it prints when it cannot run."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from stonechat_server.bench import command
from stonechat_server.bench.selftest import REQUIRED_TOKENS_PER_SECOND, GeneratorSpeed
from stonechat_server.bench.targets.target import BenchError
from stonechat_server.cli import main


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("per_core_second", "status"),
    [(REQUIRED_TOKENS_PER_SECOND, 0), (REQUIRED_TOKENS_PER_SECOND - 1, 1)],
)
def test_the_self_test_fails_below_the_required_speed(
    per_core_second: int,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed = GeneratorSpeed(128_000, 15_000.0, float(per_core_second))
    monkeypatch.setattr("stonechat_server.bench.selftest.measure_generator", lambda: speed)
    assert main(["bench", "--self-test"]) == status
    output = " ".join(capsys.readouterr().out.split())
    assert "read 128,000 tokens" in output
    assert "15,000 per second" in output
    assert f"{per_core_second:,} per second on one core" in output


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (BenchError("no server"), 1, "stonechat bench: no server"),
        (OSError("disk full"), 1, "stonechat bench: disk full"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_a_run_that_ends_early_says_why(
    error: BaseException,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "_measure", raising(error))
    assert main(["bench"]) == status
    assert text in capsys.readouterr().err


def test_flags_of_the_engine_need_a_model_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--threads", "2"]) == 1
    assert capsys.readouterr().err == "stonechat bench: --threads is for --in-process MODEL\n"


def test_files_to_compare_must_be_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("broken.json", "missing.json"):
        flags = ["--report-only", "--compare", str(tmp_path / name)]
        assert main(["bench", *flags, "--html", str(tmp_path / "out.html")]) == 1
        assert capsys.readouterr().err.startswith("stonechat bench: ")
    assert not (tmp_path / "out.html").exists()


def test_a_report_alone_needs_a_file_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--report-only"]) == 1
    assert "needs --compare and --html" in capsys.readouterr().err
