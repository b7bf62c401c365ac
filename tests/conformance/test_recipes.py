"""Runs the client recipes of the docs as they are, on the default model.

The recipes of coding agents are in `test_agents.py`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.tiny_rerankers import save_reranker
from tests.nightly import nightly

from .conftest import LiveServer, live_server
from .recipes import PAGES, RECIPES, run
from .test_agents import AGENTS

pytestmark = pytest.mark.clients
NEEDS = {
    "anthropic-node": "node:@anthropic-ai/sdk",
    "anthropic-python": "python:anthropic",
    "cohere": "cohere:cohere",
    "curl": ":curl",
    "curl-stream": ":curl",
    "hugging-face": "python:huggingface_hub",
    "inspect": "python:inspect",
    "instructor": "instructor:instructor",
    "langchain": "python:langchain_openai",
    "langchain-node": "node:@langchain/openai",
    "langchain-ollama": "python:langchain_ollama",
    "litellm": "litellm:litellm",
    "litellm-proxy": "litellm-proxy:litellm",
    "llama-index": "llama-index:llama_index.llms.openai_like",
    "llm": "python:llm",
    "lm-eval": "lm-eval:lm_eval",
    "ollama-node": "node:ollama",
    "ollama-python": "python:ollama",
    "open-webui": "open-webui:open-webui",
    "openai-agents": "python:agents",
    "openai-agents-node": "node:@openai/agents",
    "openai-node": "node:openai",
    "openai-python": "python:openai",
    "openai-python-responses": "python:openai",
    "openai-python-schema": "python:openai",
    "openai-python-tools": "python:openai",
    "pydantic-ai": "python:pydantic_ai",
    "vercel-ai-sdk": "node:@ai-sdk/openai-compatible",
    "vercel-ai-sdk-schema": "node:@ai-sdk/openai",
}
PRINTS = {
    "inspect": r"(?s).*accuracy.*",
    "instructor": r"name='.{0,20}' length_km=\d+\n",
    "lm-eval": r"(?s).*\|rivers\|.*\|acc +\|.*",
    "openai-python-schema": r"name='.{0,20}' length_km=\d+\n",
    "openai-python-tools": r"(get_weather \{'city': .{2,40}\}\n)+",
    "vercel-ai-sdk-schema": r'\{"name":".{0,40}","length_km":\d+\}\n',
}


DAILY = ("curl", "curl-stream", "openai-node", "openai-python")
OTHERS = sorted(RECIPES.keys() - AGENTS.keys() - {"cohere", *DAILY})


@pytest.mark.parametrize("name", [*DAILY, *nightly(*OTHERS)])
def test_the_recipe_works(name: str, server: LiveServer, tmp_path: Path) -> None:
    printed = run(name, NEEDS[name], server.url, tmp_path)
    if name in ("curl", "litellm-proxy", "open-webui"):
        assert json.loads(printed)["choices"][0]["message"]["content"].strip()
    elif name == "curl-stream":
        assert printed.endswith("data: [DONE]\n\n")
        assert '"usage":{"prompt_tokens"' in printed
    elif name in PRINTS:
        assert re.fullmatch(PRINTS[name], printed)
    else:
        assert len(printed.split()) >= 2


def test_the_recipe_of_a_reranker_works(say: Callable[[str], None], tmp_path: Path) -> None:
    folder = save_reranker(tmp_path / "bge-reranker-base")
    with live_server(say, model=str(folder)) as reranker:
        printed = run("cohere", NEEDS["cohere"], reranker.url, tmp_path)
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    assert {text for _, text in lines} == {"The Volga is a river.", "Everest is a mountain."}
    assert [float(score) for score, _ in lines] == sorted([float(s) for s, _ in lines])[::-1]


def test_every_recipe_is_found() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert set(RECIPES) == NEEDS.keys() | AGENTS.keys()
    assert text.count("<!-- ") == text.count("\n```") / 2
    assert all(recipe.program for recipe in RECIPES.values())
