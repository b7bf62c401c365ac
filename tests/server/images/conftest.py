"""A server of a model that takes images."""

import pytest

from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.fake_images import IMAGES, TEMPLATE, FakeImageProcessor
from tests.server.storing import new_server, server

__all__ = ["new_server", "server"]


@pytest.fixture
def processor() -> FakeImageProcessor:
    return FakeImageProcessor()


@pytest.fixture
def engine(processor: FakeImageProcessor) -> FakeEngine:
    return FakeEngine(
        model=model_info(images=IMAGES),
        tokenizer=ByteTokenizer(chat_template=TEMPLATE),
        image_processor=processor,
    )
