"""The config for KubeRay names an app that is there, with arguments that it accepts."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from stonechat_server.ray_serve.application import check
from stonechat_server.ray_serve.options import AppArguments
from stonechat_server.settings import Settings

CONFIG = Path(__file__).parents[3] / "docs" / "ray-service.yaml"


def test_the_config_for_kuberay_names_the_app_and_options_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = yaml.safe_load(CONFIG.read_text())
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    options = AppArguments(**app["args"])
    monkeypatch.setenv("STONECHAT_LEDGER", "postgresql://user@host/usage")  # as its secret does
    check(options, Settings(**options.settings))
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    for group in (head, *_workers(service)):
        (container,) = group["containers"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
        assert {volume["name"] for volume in group["volumes"]} == {"keys", "shared"}


def _workers(service: dict) -> list[dict]:
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return [group["template"]["spec"] for group in groups]
