"""Requests made from the OpenAPI document get no 5xx and no answer that it does not describe."""

import atexit
import shutil
import tempfile
from pathlib import Path

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, settings

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.storing import storing_app

schemathesis = pytest.importorskip("schemathesis")


class LastingEngine(FakeEngine):
    """Stays alive after `shutdown`, because every case has its own lifespan."""

    async def shutdown(self) -> None:
        pass


class IdleRunner:
    """Runs no batch, and can be closed again and again."""

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def begin(self, _: object) -> None:
        pass

    cancel = begin


def lasting(app: FastAPI) -> FastAPI:
    """The app, nothing of which is closed with a lifespan."""
    services = app.state.server
    services.sole.structure.close = lambda: None
    services.preparations.close = services.lifecycle.begin_drain = lambda: None
    if app.state.storage is not None:
        app.state.storage.close = lambda: None
        app.state.batches = IdleRunner()
    return app


app = lasting(create_app(Settings(allowed_host=["testserver"]), LastingEngine()))
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
if settings.get_current_profile_name() != "full":  # the phase `coverage` takes minutes
    schema.config.phases.update(phases=["examples", "fuzzing"])

folder = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, folder, True)
storing = lasting(storing_app(folder, LastingEngine(), allowed_host=["testserver"]))
files = schemathesis.openapi.from_asgi("/openapi.json", storing)
files = files.include(path_regex="/v1/(files|batches)")


LARGE = (
    *("/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"),
    *("/v1/chat/completions/render", "/v1/tokenize", "/v1/responses/input_tokens"),
    *("/v1/chat/completions", "/tokenize"),
)
"""Paths of large schemas, of which it takes seconds to make one request. Each run of the tests
makes requests to them in `test_fuzz_endpoints`."""


def check(case: "schemathesis.Case") -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    response = case.call()
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    case.validate_response(response, checks=checks)


few = settings(
    max_examples=settings.default.max_examples // 10, suppress_health_check=list(HealthCheck)
)


@schema.exclude(path=list(LARGE)).parametrize()
@few
def test_no_server_error(case: "schemathesis.Case") -> None:
    check(case)


@pytest.mark.nightly
@schema.include(path=list(LARGE)).parametrize()
@few
def test_no_server_error_at_large_schemas(case: "schemathesis.Case") -> None:
    check(case)


@pytest.mark.nightly
@files.parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_no_server_error_at_files(case: "schemathesis.Case") -> None:
    check(case)
