"""The options of a deployment, and what cannot be shared between processes."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from stonechat_server.cli import main
from stonechat_server.commands.ray import reason_of
from stonechat_server.ray_serve import application
from stonechat_server.ray_serve.application import check
from stonechat_server.ray_serve.options import AppArguments
from stonechat_server.settings import Settings


@pytest.mark.parametrize(
    ("values", "capacity"),
    [
        ({}, 2.0),
        ({"replicas": 4, "ingresses": 2}, 2.0),
        ({"replicas": 1, "max_replicas": 6, "ingresses": 4}, 1.5),
    ],
)
def test_ingresses_share_the_capacity_of_all_engines(values: Any, capacity: float) -> None:
    assert AppArguments(**values).capacity == capacity


@pytest.mark.parametrize("values", [{"replicas": 3, "max_replicas": 2}, {"replica": 3}])
def test_options_that_cannot_be_are_refused(values: Any) -> None:
    with pytest.raises(ValidationError):
        AppArguments(**values)


@pytest.mark.parametrize(
    ("ingresses", "settings", "problem"),
    [
        (2, {"ledger": "usage.db"}, "PostgreSQL"),
        (2, {}, "PostgreSQL"),
        (2, {"ledger": "off"}, "folder for files"),
        (2, {"ledger": "off", "files_dir": "/shared/files"}, "files is in SQLite"),
        (1, {"models": {"a": {"path": "x"}}}, "one model"),
        (1, {"tls_cert": "cert.pem"}, "TLS"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(
    ingresses: int, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        check(AppArguments(ingresses=ingresses), Settings(**settings))


@pytest.mark.parametrize(
    ("ingresses", "ledger", "files_dir"),
    [
        (1, "usage.db", None),
        (1, "off", None),
        (2, "off", Path("off")),
        (2, "postgresql://host/usage", Path("/shared/files")),
    ],
)
def test_what_they_can_share_is_accepted(
    ingresses: int, ledger: str, files_dir: Path | None
) -> None:
    check(AppArguments(ingresses=ingresses), Settings(ledger=ledger, files_dir=files_dir))


def test_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["ray", "status"]) == 1
    assert 'pip install "stonechat[ray]"' in capsys.readouterr().err


def test_a_proxy_that_does_not_start_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray is not installed for this test: modules of its names take its place."""
    dead = type("RayError", (Exception,), {})("The actor died.\nactor_id: 69")
    calls: list[str] = []

    def init(**_: Any) -> None:
        calls.append(os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"])

    def start(**_: Any) -> None:
        raise dead

    modules = {name: ModuleType(name) for name in ("ray", "ray.serve", "ray.exceptions")}
    contents = {"init": init, "start": start, "RayError": type(dead), "serve": modules["ray.serve"]}
    for name, module in modules.items():
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(application, "build", lambda arguments: None)
    monkeypatch.setattr(os, "environ", {**os.environ})
    assert main(["ray", "deploy", "model"]) == 1
    assert capsys.readouterr().err.strip().endswith("proxy did not start: The actor died.")
    assert calls == ["60"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", ""),
        ("Deploying.\nMore.", "Deploying."),
        (
            "The deployment failed.\n  File x, line 3\n    raise ModelLoadError(\n"
            "stonechat_models.errors.ModelLoadError: there is no file: x\nRetrying.",
            "there is no file: x",
        ),
    ],
)
def test_the_reason_of_a_failure_is_found_among_tracebacks(message: str, reason: str) -> None:
    assert reason_of(message) == reason
