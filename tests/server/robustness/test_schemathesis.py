"""Requests made from the OpenAPI document get no 5xx and no answer that it does not describe."""

import pytest
from hypothesis import HealthCheck, settings

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.fake_engine import FakeEngine

schemathesis = pytest.importorskip("schemathesis")


class LastingEngine(FakeEngine):
    """Stays alive after `shutdown`, because every case has its own lifespan."""

    async def shutdown(self) -> None:
        pass


app = create_app(Settings(allowed_host=["testserver"]), LastingEngine())
services = app.state.server
services.sole.structure.close = lambda: None  # for the same reason
services.preparations.close = services.lifecycle.begin_drain = lambda: None
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
if settings.get_current_profile_name() != "full":  # the phase `coverage` takes minutes
    schema.config.phases.update(phases=["examples", "fuzzing"])


LARGE = (
    *("/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"),
    *("/v1/chat/completions/render", "/v1/tokenize", "/v1/responses/input_tokens"),
    *("/v1/chat/completions", "/tokenize"),
)
"""Paths of large schemas, of which it takes seconds to make one request. `test_fuzz` and
`test_fuzz_endpoints` make requests to them in each run of the tests."""


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
