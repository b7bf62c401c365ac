"""A server of a model that takes images."""

import pytest

from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.fake_media import IMAGES, TEMPLATE, FakeMediaProcessor
from tests.server.storing import new_server, server

__all__ = ["new_server", "server"]


@pytest.fixture
def processor() -> FakeMediaProcessor:
    return FakeMediaProcessor()


@pytest.fixture
def engine(processor: FakeMediaProcessor) -> FakeEngine:
    return FakeEngine(
        model=model_info(images=IMAGES),
        tokenizer=ByteTokenizer(chat_template=TEMPLATE),
        media_processor=processor,
    )
