"""`stonechat batch`: a file of requests on an engine in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stonechat_models import EngineDeadError, FinishReason, GenerateRequest
from stonechat_server.cli import main
from tests.server.batches_api.batch_files import jsonl, line, said_by
from tests.server.fake_engine import FakeEngine, delta, output


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine()
    engine.script = lambda request: [
        output(request, delta(said_by(request), finish=FinishReason.STOP), finished=True)
    ]
    monkeypatch.setattr("stonechat_models.AsyncEngine.from_config", lambda *_: engine)
    return engine


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "in.jsonl"
    names = [f"r{i}" for i in range(9)]
    file.write_bytes(jsonl([line(name, "/v1/completions") for name in names]))
    return file


def answers(path: Path) -> dict[str, str]:
    found = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({value["custom_id"] for value in found}) == len(found)
    return {v["custom_id"]: v["response"]["body"]["choices"][0]["text"] for v in found}


def test_every_request_is_answered(engine: FakeEngine, file: Path, tmp_path: Path) -> None:
    assert main(["batch", "run", str(file)]) == 0
    results = tmp_path / "in.results.jsonl"
    assert answers(results) == {f"r{i}": f"r{i}" for i in range(9)}
    assert sorted(tmp_path.iterdir()) == [file, results]
    assert not engine.is_alive


def test_it_goes_on_where_it_stopped(engine: FakeEngine, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["batch", "run", str(file), "-o", str(out)]) == 0
    lines = out.read_bytes().splitlines(keepends=True)
    (tmp_path / "out.jsonl.part").write_bytes(b"".join(lines[:4]) + lines[4][:30])
    out.unlink()
    engine.requests.clear()
    assert main(["batch", "run", str(file), "-o", str(out)]) == 0
    assert set(answers(out)) == {f"r{i}" for i in range(9)}
    assert len(engine.requests) == 5


def test_a_failed_request_is_a_status(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl([line("a", "/v1/completions"), line("b", "/v1/completions", n=0)]))
    assert main(["batch", "run", str(file)]) == 1
    assert "1 answers, 1 failed" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["run", "check"])
def test_a_wrong_file_is_told_by_its_lines(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl([line("a"), line("a")]))
    assert main(["batch", action, str(file)]) == 1
    assert f"{file}:2: The custom_id 'a' occurs" in capsys.readouterr().err
    assert engine.requests == []
    assert main(["batch", action, str(tmp_path / "none.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_an_output_of_another_input_is_not_touched(
    engine: FakeEngine, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "in.results.jsonl"
    part = tmp_path / "in.results.jsonl.part"
    part.write_text('{"custom_id": "other", "response": null}\n')
    assert main(["batch", "run", str(file)]) == 1
    part.write_text("a text\n")
    assert main(["batch", "run", str(file)]) == 1
    assert part.read_text() == "a text\n"
    results.write_text("done")
    assert main(["batch", "run", str(file)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert results.read_text() == "done"


def test_two_do_not_write_the_same_results(
    engine: FakeEngine, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(tmp_path / "in.results.jsonl.part.lock"):
        assert main(["batch", "run", str(file)]) == 1
    assert "another `stonechat batch run` writes" in capsys.readouterr().err
    assert engine.requests == []
    assert main(["batch", "run", str(file)]) == 0


def test_a_folder_that_is_missing_is_told_before_the_model_loads(
    engine: FakeEngine, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", "run", str(file), "-o", str(tmp_path / "none" / "out.jsonl")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert engine.requests == []


def test_it_ends_if_the_engine_has_stopped_for_good(
    engine: FakeEngine, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = engine.script

    def play(request: GenerateRequest) -> Any:
        if len(engine.requests) < 5:
            return script(request)
        engine.failure = EngineDeadError("every request failed")
        return [engine.failure]

    engine.script = play
    assert main(["batch", "run", str(file), "--batch-concurrency", "1"]) == 1
    assert "stopped: every request failed. Run it again" in capsys.readouterr().err
    assert len((tmp_path / "in.results.jsonl.part").read_bytes().splitlines()) == 4
    engine.script, engine.failure, engine.is_alive = script, None, True
    assert main(["batch", "run", str(file)]) == 0
    assert len(answers(tmp_path / "in.results.jsonl")) == 9


def test_a_right_file_is_counted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "check", str(file)]) == 0
    assert "9 requests" in capsys.readouterr().out
