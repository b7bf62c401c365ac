"""A model for engines whose answers may not depend on drafts, and its answers."""

import pytest

from tests.models.engine.test_overlap import ONE_LAYER, answers_of
from tests.models.tiny_models import tiny_model


@pytest.fixture(scope="module")
def module():
    return tiny_model("llama", **ONE_LAYER)


@pytest.fixture(scope="module")
def answers(module):
    return answers_of(module)
