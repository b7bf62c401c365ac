#!/usr/bin/env python3
"""Checks which way imports go: the server uses `stonechat_models` through its public names only,
and `stonechat_models` knows nothing of the server, of HTTP, or of the API's JSON.

Prints each violation as `path:line: reason` and exits with 1 if there is one.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS, SERVER = "stonechat_models", "stonechat_server"
SERVER_ONLY = frozenset(
    {
        SERVER,
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "pydantic_settings",
        "httpx",
        "openai",
        "sqlalchemy",
        "prometheus_client",
    }
)
ENGINE_ONLY = frozenset({"torch", "transformers", "tokenizers", "accelerate", "safetensors"})


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of each import, those inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.lineno, node.module


def models_reason(module: str) -> str | None:
    if module.split(".")[0] in SERVER_ONLY:
        return f"{MODELS} must not import {module}"
    return None


def server_reason(module: str) -> str | None:
    if module.startswith(MODELS + "."):
        return f"{SERVER} must import names from {MODELS} itself, not from {module}"
    if module.split(".")[0] in ENGINE_ONLY:
        return f"{SERVER} must not import {module}"
    return None


def violations(root: Path) -> list[str]:
    """All violations under `root`, in order of path and line."""
    found: list[str] = []
    for package in (f"models/{MODELS}", f"server/{SERVER}"):
        for path in sorted((root / package).rglob("*.py")):
            where = path.relative_to(root)
            for line, module in imported(ast.parse(path.read_text(encoding="utf-8"), str(path))):
                is_models = package.startswith("models/")
                reason = (models_reason if is_models else server_reason)(module)
                if reason is not None:
                    found.append(f"{where}:{line}: {reason}")
    return found


def main() -> int:
    """Print the violations; return the exit status."""
    found = violations(ROOT)
    print("\n".join(found) if found else "imports go the right way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
