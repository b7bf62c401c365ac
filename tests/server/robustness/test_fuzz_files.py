"""As `test_schemathesis`, for files and batches on a server that keeps them."""

import atexit
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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


folder = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, folder, True)
app = storing_app(folder, LastingEngine(), allowed_host=["testserver"])
app.state.batches = IdleRunner()
services = app.state.server
services.sole.structure.close = app.state.storage.close = lambda: None
services.preparations.close = services.lifecycle.begin_drain = lambda: None
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
schema = schema.include(path_regex="/v1/(files|batches)")


@pytest.mark.nightly
@schema.parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_no_server_error(case: "schemathesis.Case") -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    case.validate_response(case.call(), checks=checks)
