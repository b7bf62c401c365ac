"""Coding agents do a whole task as the docs set them up. A script plays the model.

The task is to look at the folder and to change `notes.txt`. Each agent has tools of its own for it.
"""

from pathlib import Path

import pytest

from tests.server.live import live_server

from .recipes import run
from .scripted_model import Step, scripted_engine

pytestmark = pytest.mark.clients
MODEL = "SmolLM2-135M-Instruct"
BEFORE, AFTER = "name: old\n", "name: new\n"
DONE = "The name is new."
PATCH = "*** Begin Patch\n*** Update File: notes.txt\n@@\n-name: old\n+name: new\n*** End Patch\n"
OLD, NEW = BEFORE.strip(), AFTER.strip()
COMMAND = {
    "aider": "aider:aider",
    "claude-code": "agents:claude",
    "cline": "agents:cline",
    "codex": "agents:codex",
    "continue": "agents:cn",
    "opencode": "agents:opencode",
    "qwen-code": "agents:qwen",
}


def agent_steps(folder: Path) -> dict[str, list[Step]]:
    path = str(folder / "notes.txt")
    edit = {"old_string": OLD, "new_string": NEW}
    return {
        "aider": [f"notes.txt\n```\n{AFTER}```\n"],
        "claude-code": [
            ("Read", {"file_path": path}),
            ("Edit", {"file_path": path, **edit}),
            DONE,
        ],
        "cline": [
            ("run_commands", {"commands": ["ls"]}),
            ("editor", {"path": path, "old_text": OLD, "new_text": NEW}),
            DONE,
        ],
        "codex": [
            ("exec_command", {"cmd": "ls"}),
            ("exec_command", {"cmd": f"apply_patch <<'END'\n{PATCH}END"}),
            DONE,
        ],
        "continue": [
            ("List", {"dirpath": "."}),
            ("Read", {"filepath": path}),
            ("Edit", {"file_path": path, **edit}),
            DONE,
        ],
        "opencode": [
            ("bash", {"command": "ls", "description": "List the files"}),
            ("read", {"filePath": path}),
            ("edit", {"filePath": path, "oldString": OLD, "newString": NEW}),
            DONE,
        ],
        "qwen-code": [
            ("glob", {"pattern": "*.txt"}),
            ("read_file", {"file_path": path}),
            ("edit", {"file_path": path, **edit}),
            DONE,
        ],
    }


AGENTS = agent_steps(Path())


@pytest.mark.parametrize("name", AGENTS)
def test_the_agent_edits_the_file(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "notes.txt").write_text(BEFORE)
    steps = agent_steps(folder)[name]
    engine = scripted_engine(MODEL, steps)
    with live_server(engine) as server:
        printed = run(name, COMMAND[name], server.url, tmp_path)
    assert (folder / "notes.txt").read_text() == AFTER
    assert steps[-1] in printed or name == "aider"
    assert len(engine.requests) >= len(steps)
