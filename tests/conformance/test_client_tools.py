"""Client libraries run a tool loop, over each endpoint that they speak. A script plays the model.

Each program prints the last answer of each loop and of each further turn.
"""

from pathlib import Path

import pytest

from tests.server.live import live_server

from .clients import run_program
from .scripted_model import RESULT, scripted_engine

pytestmark = pytest.mark.clients
PROGRAMS = Path(__file__).parent / "programs"
DONE = "It is sunny."
NEEDS = {
    "ai_sdk.mjs": "node:@ai-sdk/openai",
    "anthropic_tools.mjs": "node:@anthropic-ai/sdk",
    "anthropic_tools.py": "python:anthropic",
    "inspect_tools.py": "python:inspect_ai",
    "langchain_tools.py": "python:langchain_anthropic",
    "llama_index_tools.py": "llama-index:llama_index.llms.openai_like",
    "openai_agents.mjs": "node:@openai/agents",
    "openai_agents.py": "python:agents",
    "pydantic_ai_tools.py": "python:pydantic_ai",
}
NUM_ANSWERS = {
    "ai_sdk.mjs": 6,
    "pydantic_ai_tools.py": 6,
    "inspect_tools.py": 3,
    "langchain_tools.py": 4,
    "openai_agents.py": 4,
}
PRINTS = {"llama_index_tools.py": "sunny in Bern\n"}


@pytest.mark.parametrize("name", sorted(path.name for path in PROGRAMS.iterdir()))
def test_the_tool_is_called(name: str, tmp_path: Path) -> None:
    engine = scripted_engine("model", [("get_weather", {"city": "Bern"}), DONE])
    with live_server(engine) as live:
        variables = {
            "OPENAI_BASE_URL": f"{live.url}/v1",
            "ANTHROPIC_BASE_URL": live.url,
            "ANTHROPIC_API_KEY": "none",
        }
        files = {name: (PROGRAMS / name).read_text()}
        printed = run_program(name, files, NEEDS[name], tmp_path, **variables)
    assert printed == PRINTS.get(name, f"{DONE}\n" * NUM_ANSWERS.get(name, 2))
    if name not in PRINTS:
        assert f"{RESULT}sunny in Bern" in engine.prompt
