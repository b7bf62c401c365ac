"""The server's own scorecard: all checks of `stonechat check` against the default model."""

import asyncio

import pytest

from stonechat_server.scorecard.command import Options, examine
from stonechat_server.scorecard.report import details

from .conftest import LiveServer


@pytest.mark.nightly
def test_every_field_is_honoured(server: LiveServer) -> None:
    options = Options(model=server.model)
    scorecard = asyncio.run(examine("ours", server.url, options))
    assert details(scorecard) == []
