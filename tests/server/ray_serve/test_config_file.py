"""The config for KubeRay names an app that is there, with arguments that it accepts."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
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


@pytest.mark.nightly
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
@pytest.mark.parametrize("ingresses", [1, 2])
def test_ray_serve_builds_the_app_of_the_config(ingresses: int) -> None:
    """In a process of its own: importing Ray changes a process for good."""
    program = f"""
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call
from ray.serve._private.build_app import build_app
from ray._common.utils import import_attr
service = yaml.safe_load(open({str(CONFIG)!r}))
(app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
args = app["args"] | dict(ingresses={ingresses})
built = build_app(call(import_attr(app["import_path"]), args), name="stonechat")
print(sorted(deployment.name for deployment in built.deployments), built.ingress_deployment_name)
"""
    paths = os.pathsep.join([str(CONFIG.parents[1] / name) for name in ("server", "models")])
    variables = {"PYTHONPATH": paths, "STONECHAT_LEDGER": "postgresql://user@host/usage"}
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | variables,
    )
    names = ["Ingress", *(["Limits"] if ingresses > 1 else []), "Replica"]
    assert run.stdout.strip() == f"{names} Ingress"
