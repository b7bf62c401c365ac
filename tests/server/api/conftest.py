"""The OpenAPI document of an open server, made once."""

from typing import Any

import pytest

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.fake_engine import FakeEngine


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    return create_app(Settings(), FakeEngine()).openapi()
