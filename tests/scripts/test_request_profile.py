"""A plain request runs through few files and functions, and enters no module that it does not use.

`docs/decisions.md` has the counts. Raise a bound only with a reason there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stonechat_models.checkpoint.resolve import ModelFiles

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "request_profile.py"
MAX_FILES, MAX_FUNCTIONS = 40, 220
UNUSED = (
    *("structured/structure", "structured/answer_form", "structured/tool_grammar"),
    *("prompt/tool_prompt", "parsers/", "request/legacy_functions", "request/other_names"),
    *("admission/rate_limits",),
    *("engine/cache/forking", "text/stop_strings", "text/stop_scope", "text/stop_filter"),
    *("sampling/logprobs", "engine/prompt_rows"),
    *("text/logprob_entries", "grammar/", "media/", "images/"),
    *("engine/speculation/draft", "engine/speculation/step_costs", "sampling/edits"),
)


@pytest.mark.slow
def test_a_plain_request_runs_through_little_code(default_model_files: ModelFiles) -> None:
    """On a busy machine the server joins waiting tokens, which takes more code: it is run again."""
    for _ in range(6):
        lines = profile()
        counts = {name: int(number) for number, name in (line.split(None, 1) for line in lines[:2])}
        if not any("join_outputs" in line for line in lines):
            break
    text = "\n".join(lines)
    assert 20 < counts["files"] <= MAX_FILES, text
    assert 100 < counts["functions"] <= MAX_FUNCTIONS, text
    files = [line.split()[1] for line in lines if ".py" in line]
    entered = [file for file in files for part in UNUSED if f"/{part}" in file]
    assert entered == []


def profile() -> list[str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--list"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
