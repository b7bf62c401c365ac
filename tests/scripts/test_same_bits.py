"""A server's answers have the same bits alone and in company, log-probabilities included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stonechat_models.checkpoint.resolve import ModelFiles

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.mark.slow
@pytest.mark.nightly  # `test_same_answer_over_http` compares the same without the script
def test_answers_over_http(tmp_path: Path, default_model_files: ModelFiles) -> None:
    command = [sys.executable, str(SCRIPTS / "same_bits.py"), "--model"]
    command += [str(default_model_files.weights[0]), "--prompts", "6", "--tokens", "12"]
    done = subprocess.run(
        [*command, "--log", str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert json.loads(done.stdout) == {"prompts": 6, "different": []}
