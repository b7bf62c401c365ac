"""Runs the client recipes of the docs as they are, on the default model.

A recipe is skipped if its client is not installed. `STONECHAT_RECIPE_PYTHON` names another Python
that has the Python clients. `STONECHAT_RECIPE_NODE` names a folder whose `node_modules` has the
JavaScript clients.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import LiveServer

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
RECIPE = re.compile(r"<!-- recipe: ([\w-]+) -->\n```(\w+)\n(.*?)```", re.DOTALL)
RECIPES = {name: (language, code) for name, language, code in RECIPE.findall(PAGE.read_text())}
NEEDS = {
    "langchain": "langchain_openai",
    "litellm": "litellm",
    "openai-node": "openai",
    "vercel-ai-sdk": "@ai-sdk/openai-compatible",
}


def run(name: str, server: LiveServer, folder: Path) -> str:
    """Run the recipe and return what it prints."""
    language, code = RECIPES[name]
    code = code.replace("http://127.0.0.1:8000", server.url)
    command = {"sh": _shell, "python": _python, "js": _node}[language](name, folder)
    path = folder / command.pop()
    path.write_text(code)
    environment = {**os.environ, "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1"}
    process = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def _shell(name: str, folder: Path) -> list[str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return ["sh", "recipe.sh"]


def _python(name: str, folder: Path) -> list[str]:
    python = os.environ.get("STONECHAT_RECIPE_PYTHON", sys.executable)
    module = NEEDS.get(name, "openai")
    if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
        pytest.skip(f"{python} has no package {module}")
    return [python, "recipe.py"]


def _node(name: str, folder: Path) -> list[str]:
    modules = Path(os.environ.get("STONECHAT_RECIPE_NODE", ".")) / "node_modules"
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (modules / NEEDS[name]).is_dir():
        pytest.skip(f"{modules.resolve()} has no package {NEEDS[name]}")
    (folder / "node_modules").symlink_to(modules.resolve())
    return ["node", "recipe.mjs"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_recipe_works(name: str, server: LiveServer, tmp_path: Path) -> None:
    output = run(name, server, tmp_path)
    if name == "curl":
        assert json.loads(output)["choices"][0]["message"]["content"].strip()
    elif name == "curl-stream":
        assert output.endswith("data: [DONE]\n\n")
        assert '"usage":{"prompt_tokens"' in output
    elif name == "openai-python-schema":
        assert re.fullmatch(r"name='.{0,20}' length_km=\d+\n", output)
    elif name == "openai-python-tools":
        assert re.fullmatch(r"(get_weather \{'city': .{2,40}\}\n)+", output)
    else:
        assert len(output.split()) >= 2


def test_every_recipe_is_found() -> None:
    assert len(RECIPES) == PAGE.read_text().count("```") // 2 == 9
