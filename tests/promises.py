"""What a version promises to keep: names of commands, flags, settings, fields, paths and metrics.

`docs/compatibility.md` says for how long. When a version is released, write down what it has:

    PYTHONPATH=server:models python -m tests.promises > docs/data/promises/0.2.json
"""

import json
import re
from collections.abc import Iterator, Mapping

from fastapi.testclient import TestClient
from pydantic import BaseModel

import stonechat_models
from scripts.update_docs import FIELD_TABLES
from stonechat_server.app import ROUTES, create_app
from stonechat_server.cli import COMMANDS, load_command
from stonechat_server.schema.fields import FieldStatus
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import actions_of, flags_of
from tests.server.fake_engine import FakeEngine

Surface = Mapping[str, list[str]]


def surface() -> Surface:
    """Return all promised names by kind, sorted."""
    kinds = {
        "flags": flags(),
        "settings": iter(Settings.model_fields),
        "variables": (f"STONECHAT_{name.upper()}" for name in [*Settings.model_fields, "config"]),
        "paths": paths(),
        "honoured fields": honoured_fields(),
        "metrics": metrics(),
        "names of stonechat_models": iter(stonechat_models.__all__),
    }
    return {kind: sorted(set(names)) for kind, names in kinds.items()}


def flags() -> Iterator[str]:
    """Yield `stonechat COMMAND` and `stonechat COMMAND FLAG`, for all commands and actions."""
    for name in COMMANDS:
        options = load_command(name).Options
        yield from _flags(f"stonechat {name}", options)
        for word, action in actions_of(options).items():
            yield from _flags(f"stonechat {name} {word}", action)


def _flags(command: str, options: type[BaseModel]) -> Iterator[str]:
    yield command
    for flag in flags_of(options):
        yield f"{command} {flag.spelling}"


def paths() -> Iterator[str]:
    for module in ROUTES:
        for route in module.router.routes:
            for method in getattr(route, "methods", ()):
                yield f"{method} {getattr(route, 'path', '')}"


def honoured_fields() -> Iterator[str]:
    for endpoint, table in FIELD_TABLES.items():
        for name, note in table.items():
            if note.status is FieldStatus.HONOURED:
                yield f"{endpoint} {name}"


def metrics() -> Iterator[str]:
    """Yield the names of the metrics that a server has after its start."""
    with TestClient(create_app(Settings(), FakeEngine()), "http://127.0.0.1:8000") as client:
        text = client.get("/metrics").text
    names = re.findall(r"^# TYPE (stonechat:\S+)", text, re.MULTILINE)
    yield from (name for name in names if not name.endswith("_created"))


if __name__ == "__main__":
    print(json.dumps(surface(), indent=1))
