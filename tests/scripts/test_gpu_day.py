"""The plans for a GPU machine: what they run, what is kept, and what travels."""

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.machinery import SourceFileLoader
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "gpu"
PLANS = ("correct", "speed", "variants", "sweep")


def script(name):
    loader = SourceFileLoader(f"gpu_{name}", str(SCRIPTS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def day(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return script("day")


@pytest.fixture
def run(day, tmp_path):
    """Return a function that runs parts, and gives the ends of all parts by name."""

    def run(*parts, seconds=100.0):
        out = tmp_path / "out"
        one_day = day.Day("test", seconds, out, tmp_path / "bundle", tmp_path / "work")
        one_day.run(list(parts))
        one_day.save("complete")
        one_day.save_kernels()
        return json.loads((out / "summary.json").read_text())

    return run


def python(day, name, code, seconds=60.0, **settings):
    return day.Part(name, [sys.executable, "-c", code, "{out}"], seconds, **settings)


def ends(summary):
    return {part["name"]: part["end"] for part in summary["parts"]}


def test_a_part_that_fails_does_not_stop_the_next(day, run, tmp_path, capsys):
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1], 'x.md').write_text('a table')"
    summary = run(
        python(day, "bad", "print('some words'); raise SystemExit(3)"),
        day.Part("absent", [str(tmp_path / "nothing")], 10.0),
        python(day, "good", f"print('more words'); {writes}"),
    )
    found = ends(summary)
    assert found["bad"] == "failed with status 3"
    assert found["absent"].startswith("not started: ")
    assert found["good"] == "ok"
    assert summary["end"] == "complete"
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "day.log",
        "summary.json",
        "tables.md",
        "results.tar.gz",
    }
    log = (out / "day.log").read_text()
    assert "some words" in log
    assert "more words" in log
    assert (out / "tables.md").read_text() == "a table"
    with tarfile.open(out / "results.tar.gz") as archive:
        assert "results/good/x.md" in archive.getnames()
    assert "some words" in capsys.readouterr().out


def test_a_part_that_hangs_is_ended_with_all_that_it_started(day, run, tmp_path, monkeypatch):
    """It is interrupted first, so that it can write its results."""
    folder = tmp_path / "work" / "results" / "hangs"
    wait, steps = subprocess.Popen.wait, ["started", "child"]

    def wait_for_step(process, timeout=None):
        """Both limits of the part are over when it has come so far."""
        if timeout is None or not steps:
            return wait(process, timeout)
        while not (folder / steps[0]).is_file():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(steps.pop(0), timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_step)
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may ignore it
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " process_group=0)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "try:\n"
        "    (folder / 'started').touch()\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    (folder / 'new').write_text(str(child.pid))\n"
        "    (folder / 'new').rename(folder / 'child')\n"
        "    time.sleep(600)\n"
    )
    summary = run(python(day, "hangs", code, 4.0), python(day, "next", "pass"))
    assert ends(summary) == {"hangs": "stopped after 4 s", "next": "ok"}
    child = int((folder / "child").read_text())
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def test_results_come_home_while_a_part_runs(day, run, tmp_path, monkeypatch):
    """The machine may be taken away at any time. This part ends once its table is saved."""
    import running

    monkeypatch.setattr(running, "SAVE_SECONDS", 0.05)
    code = (
        "import json, pathlib, sys, time\n"
        f"out = pathlib.Path({str(tmp_path / 'out')!r})\n"
        "pathlib.Path(sys.argv[1], 'x.md').write_text('a table')\n"
        "while not (out / 'tables.md').is_file() or not (out / 'results.tar.gz').is_file():\n"
        "    time.sleep(0.01)\n"
        "part = json.loads((out / 'summary.json').read_text())['parts'][0]\n"
        "sys.exit(part['end'] != 'interrupted')\n"
    )
    assert ends(run(python(day, "waits", code, 60.0))) == {"waits": "ok"}


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_seconds_are_divided_in_order_and_what_gets_too_little_is_cut(day):
    parts = [python(day, name, "pass", seconds) for name, seconds in SECONDS.items()]
    assert day.allot(parts, 200.0) == [60.0, 90.0, 30.0, 20.0]
    assert day.allot(parts, 175.0) == [60.0, 90.0, 25.0, 0.0]
    assert day.allot(parts, 79.0) == [60.0, 0.0, 19.0, 0.0]
    assert day.allot(parts, 5.0) == [0.0] * 4
    assert day.allot(parts, -5.0) == [0.0] * 4


SECONDS = {"a": 60.0, "b": 90.0, "c": 30.0, "d": 24.0}


def test_what_is_cut_at_first_runs_in_the_time_that_others_leave(day, run, capsys):
    summary = run(python(day, "long", "pass", 240.0), python(day, "later", "pass", 60.0))
    long, later = (part["limit"] for part in summary["parts"])
    assert 80 < long <= 100 - day.END_SECONDS
    assert later == 60
    assert "later cut" in capsys.readouterr().out
    assert ends(summary) == {"long": "ok", "later": "ok"}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_fits_its_seconds(day, name):
    import plans

    parts = day.PLANS[name]()
    left = day.SECONDS[name] - plans.START_SECONDS - plans.END_SECONDS
    assert sum(part.seconds for part in parts) <= left
    assert day.allot(parts, left) == [part.seconds for part in parts]
    assert f"{day.SECONDS[name]} s" in (SCRIPTS.parents[1] / "docs" / "gpu.md").read_text()


def test_the_first_day_has_time_for_what_is_new(day):
    import plans

    parts = day.PLANS["correct"]()
    limits = day.allot(parts, 345 - plans.START_SECONDS - plans.END_SECONDS)
    assert {part.name for part, limit in zip(parts, limits, strict=True) if limit} == {
        *("smoke", "new", "alone", "small")
    }


def test_failures_of_tests_are_reported_as_they_come(day, run, tmp_path, capsys, monkeypatch):
    """The last test kills its process."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import os, signal\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2, 'no such number'\n"
        "def test_fatal(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    import plans

    part = plans.pytest_run("some", [str(tests)], 60.0, "-c", "/dev/null", is_alone=True)
    assert ends(run(part)) == {"some": "failed with status -9"}
    shown = capsys.readouterr().out
    assert "1 failed, 1 passed after" in shown
    assert "test_wrong, call: AssertionError: no such number assert 1 == 2" in shown
    assert "no such number" in (tmp_path / "out" / "day.log").read_text()


def test_a_day_that_is_ended_names_its_part_and_keeps_the_kernels(day, tmp_path, monkeypatch):
    code = (
        "import os, pathlib, signal, time; k = pathlib.Path(os.environ['TRITON_CACHE_DIR'], 'KEY');"
        "k.mkdir(parents=True); (k / 'k.cubin').touch();"
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    )
    monkeypatch.setitem(day.PLANS, "sweep", lambda: [python(day, "ends", code)])
    folders = [f"--{name}={tmp_path / name}" for name in ("out", "bundle", "work")]
    monkeypatch.setattr(sys, "argv", ["day", "sweep", "100", *folders])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="ended by signal"):
            day.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert ends(summary) == {"ends": "interrupted"}
    assert summary["end"] == f"SystemExit: ended by signal {signal.SIGTERM:d}"
    assert (tmp_path / "out" / "triton-bench.tar.xz").is_file()


def test_without_time_no_part_starts(day, run):
    summary = run(python(day, "late", "pass"), seconds=1.0)
    assert ends(summary) == {"late": "cut: 0 s left, it takes 60"}


def test_the_environment_of_a_part(day, run, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'e').write_text(repr(os.environ))"
    run(python(day, "shows", code, environment={"EXTRA": "1"}))
    text = (tmp_path / "work" / "results" / "shows" / "e").read_text()
    root = SCRIPTS.parents[1]
    assert f"'PYTHONPATH': '{root}/server:{root}/models:{root}:before'" in text
    for words in ("'EXTRA': '1'", "'HF_HUB_OFFLINE': '1'", f"'{tmp_path}/work/triton/bench'"):
        assert words in text


@pytest.mark.parametrize("name", PLANS)
def test_plans_name_files_that_are_there(day, name):
    root = SCRIPTS.parents[1]
    parts = day.PLANS[name]()
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        for word in part.command:
            if word.startswith(("scripts/", "tests/")):
                assert (root / word).exists(), word
        if "scripts/gpu/bench.py" in part.command:
            check_flags(part.command[2:])


def check_flags(words):
    import bench

    arguments = bench.parse_arguments(words)
    from model_part import MODES
    from shapes import SHAPES

    assert set(arguments.models) <= set(SHAPES)
    assert set(arguments.modes or MODES) <= set(MODES)


def test_the_tests_of_kernels_are_found(day):
    import plans

    assert "tests/models/backends/transformers/attention/test_triton_backend.py" in (
        plans.kernel_tests()
    )
    assert "tests/models/backends/transformers/test_kv_cache.py" not in plans.kernel_tests()


def test_compiled_kernels_come_back_and_are_used_again(day, run, tmp_path):
    """Triton keeps whole paths, and the next run may be in another folder."""
    code = "import os, pathlib; k = pathlib.Path(os.environ['TRITON_CACHE_DIR'], 'KEY'); "
    group = '{"child_paths": {"k.cubin": "/elsewhere/KEY/k.cubin"}}'
    writes = code + "k.mkdir(parents=True); [(k / n).touch() for n in ('k.cubin', 'k.llir')]"
    writes += f"; (k / '__grp__k.json').write_text({group!r})"
    run(python(day, "writes", writes), python(day, "sweeps", writes, cache="sweep"))
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    assert [path.name for path in out.glob("triton-*")] == ["triton-bench.tar.xz"]
    bundle.mkdir()
    (out / "triton-bench.tar.xz").rename(bundle / "triton-bench.tar.xz")
    shutil.rmtree(tmp_path / "work")
    reads = code + "assert {p.name for p in k.iterdir()} == {'k.cubin', '__grp__k.json'}; "
    reads += "assert str(k / 'k.cubin') in (k / '__grp__k.json').read_text()"
    assert ends(run(python(day, "reads", reads))) == {"reads": "ok"}


def test_the_newest_kernels_are_packed_if_not_all_have_room(day, tmp_path, monkeypatch):
    import packs

    for age in (1, 2, 3):
        group = tmp_path / "cache" / f"KEY{age}"
        group.mkdir(parents=True)
        (group / "k.cubin").write_bytes(os.urandom(4000))
        os.utime(group, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(packs, "MAX_CACHE_BYTES", 12001)
    packs.pack_cache(tmp_path / "cache", tmp_path / "pack", 6000)
    with tarfile.open(tmp_path / "pack") as archive:
        assert archive.getnames() == ["KEY1/k.cubin"]


def test_a_pack_that_is_too_large_is_left_out(day, tmp_path, capsys):
    import packs

    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "large").write_bytes(os.urandom(5000))
    packs.pack_results(tmp_path / "results", tmp_path / "pack.tar.gz", 1000)
    assert not (tmp_path / "pack.tar.gz").exists()
    assert "left out" in capsys.readouterr().out


def test_a_log_that_is_too_large_loses_its_middle(day, tmp_path):
    log = tmp_path / "log"
    log.write_text("start " + "x" * 1000 + " end")
    day.cut(log, 300)
    assert len(log.read_text()) <= 300
    assert log.read_text().startswith("start ")
    assert log.read_text().endswith(" end")
    import running

    assert running.last_lines(log, 1000, 1).endswith(" end")


def test_what_the_bundle_holds():
    """All that the server imports, less what comes with PyTorch and transformers."""
    bundle = script("bundle")
    names = {line.partition("==")[0] for line in bundle.missing("3.12")}
    assert names >= {"fastapi", "opentelemetry-api", "pydantic", "pydantic-core", "sse-starlette"}
    assert names >= {"pytest", "pytest-xdist", "execnet", "llguidance", "pillow", "uvloop"}
    assert names >= {"typing-extensions", "transformers"}
    assert not names & {"torch", "numpy", "huggingface-hub", "tokenizers", "sympy"}


def test_the_day_starts_as_a_script(tmp_path):
    command = [sys.executable, str(SCRIPTS / "day"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "summary.json" in result.stdout


def test_the_bundle_has_what_the_tests_import(day):
    """A missing package ends a whole run of pytest, since it fails while tests are collected."""
    import plans

    bundle = script("bundle")
    there = {line.partition("==")[0] for line in bundle.missing("3.12")}
    there |= bundle.closure(bundle.PRESENT, "3.12") | {"triton"}
    known = packages_distributions()
    names = imported_by([*plans.kernel_tests(), *map(str, (ROOT / "tests/gpu").glob("*.py"))])
    assert names >= {"hypothesis", "httpx", "pytest", "torch", "triton"}
    lacking = {
        name
        for name in names - {"stonechat_models", "stonechat_server"}
        if not there & {bundle.canonicalize_name(package) for package in known.get(name, [name])}
    }
    assert lacking == set()


def imported_by(files):
    """The packages that test files import as they are imported, through helpers and conftests."""
    left, seen, names = [ROOT / file for file in files], set(), set()
    while left:
        file = left.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        folders = [folder for folder in file.parents if folder.is_relative_to(ROOT / "tests")]
        left += [folder / "conftest.py" for folder in folders]
        for node in ast.parse(file.read_text()).body:
            match node:
                case ast.Import():
                    modules = [alias.name for alias in node.names]
                case ast.ImportFrom():
                    modules = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
                case _:
                    continue
            left += [ROOT / f"{name.replace('.', '/')}.py" for name in modules]
            names |= {name.partition(".")[0] for name in modules}
    return names - set(sys.stdlib_module_names) - {"tests"}
