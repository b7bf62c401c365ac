"""Reads the client recipes of the docs, and runs them as they are.

`<!-- recipe: NAME -->` stands before the program of a recipe, and `<!-- file: NAME PATH -->` before
a file that it needs.
"""

import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from .clients import run_program

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "clients.md", *sorted((DOCS / "clients").glob("*.md"))]
BLOCK = re.compile(r"<!-- (recipe|file): ([\w-]+)(?: (\S+))? -->\n```(\w+)\n(.*?)```", re.DOTALL)
ADDRESS, OWN_PORT = "http://127.0.0.1:8000", r"\b4000\b"
PROGRAM = {"python": "recipe.py", "js": "recipe.mjs", "sh": "recipe.sh"}


@dataclass
class Recipe:
    """Texts by the path of their file. `program` is the path of the one to run."""

    program: str = ""
    files: dict[str, str] = field(default_factory=dict)


def read_recipes() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for page in PAGES:
        for kind, name, path, language, text in BLOCK.findall(page.read_text()):
            recipe = recipes.setdefault(name, Recipe())
            if kind == "recipe":
                assert not recipe.program, f"{name} has two programs"
                path = recipe.program = PROGRAM[language]
            recipe.files[path] = text
    return recipes


RECIPES = read_recipes()


def run(name: str, need: str, url: str, folder: Path) -> str:
    """Run the recipe against the server at `url`. Return what it prints. See `run_program`."""
    recipe = RECIPES[name]
    own_port = str(free_port())
    files = {
        path: re.sub(OWN_PORT, own_port, text).replace(ADDRESS, url)
        for path, text in recipe.files.items()
    }
    return run_program(recipe.program, files, need, folder)


def free_port() -> int:
    """Return a port for a server that the recipe itself starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
