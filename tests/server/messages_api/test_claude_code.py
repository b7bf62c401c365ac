"""The requests of a session of Claude Code 2.1.197: it reads a file, edits it, and says so.

`claude_code.json` has the bodies of its three requests without most of their texts and tools.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info
from tests.server.messages_api.answers import URL, fold, stream
from tests.server.messages_api.scripts import call, text_script

BODIES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "claude_code.json").read_text("utf-8")
)
FILE = "/home/user/project/hello.txt"
ANSWERS = (
    "<think>I read the file first.</think>\nI look." + call("Read", file_path=FILE),
    "<think>Now I edit.</think>\n"
    + call("Edit", file_path=FILE, old_string="world", new_string="moon"),
    "<think>Done.</think>\nI changed it.",
)


@pytest.fixture
def client(engine: FakeEngine, new_client: ClientFactory) -> TestClient:
    engine.model = model_info(max_model_len=40_000)
    return new_client()


def test_the_session(client: TestClient, engine: FakeEngine) -> None:
    answers = []
    for fields, text in zip(BODIES, ANSWERS, strict=True):
        engine.script = text_script(text)
        answers.append(fold(stream(client, **fields)))
    assert [answer["stop_reason"] for answer in answers] == ["tool_use", "tool_use", "end_turn"]
    kept = [message["content"] for message in BODIES[2]["messages"][2::2]]
    for answer, content in zip(answers, kept, strict=False):
        for ours, theirs in zip(answer["content"], content, strict=True):
            if ours["type"] == "tool_use":  # the client fills in defaults
                assert ours["name"] == theirs["name"]
                assert ours["input"].items() <= theirs["input"].items()
            else:
                assert ours == theirs


def test_each_prompt_begins_like_the_one_before(client: TestClient, engine: FakeEngine) -> None:
    prompts = []
    for fields in BODIES:
        response = client.post(URL, json=fields)
        assert response.status_code == 200
        assert "x-ignored-params" not in response.headers
        prompts.append(engine.prompt)
    for before, after in pairwise(prompts):
        assert after.startswith(before)
    assert prompts[0].startswith('TOOLS [{"type": "function", "function": {"name": "Bash"')
    assert prompts[2].endswith(
        f"{FILE} has been updated successfully. (call_2)<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_effort_reaches_the_template(engine: FakeEngine, new_client: ClientFactory) -> None:
    engine.tokenizer.chat_template = "{{ reasoning_effort }} {{ enable_thinking }}"
    engine.script = text_script("Hello")
    stream(new_client(), **{key: BODIES[0][key] for key in ("thinking", "output_config")})
    assert engine.prompt == "high True"
