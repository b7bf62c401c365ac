"""A bounded run of `scripts/soak/soak.py`; run the script for a longer one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stonechat_models.checkpoint.resolve import ModelFiles
from tests.nightly import nightly

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the script sends POSIX signals")
@pytest.mark.parametrize("end", [[], *nightly(["--kill"])], ids=["drained", "killed"])
def test_resources_are_freed_and_requests_are_accounted_for(
    end: list[str], default_model_files: ModelFiles, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        "scripts/soak/soak.py",
        *("--requests", "60", "--answers", "15"),
        *("--out", str(report), *end),
    ]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    document = json.loads(report.read_text())
    assert document["problems"] == []
    whole = document["outcomes"]["complete 200"]
    assert document["ledger"]["answers_compared"] == whole >= 15
    assert any(outcome.startswith("left: ") for outcome in document["outcomes"])
    assert document["exit_status"] == (-9 if end else 0)
