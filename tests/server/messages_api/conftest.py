"""A server whose template has tools and reasoning."""

import pytest

from tests.server.fake_engine import ByteTokenizer, FakeEngine
from tests.server.messages_api.scripts import TEMPLATE


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(tokenizer=ByteTokenizer(chat_template=TEMPLATE))
