"""A type that the installed transformers lacks is refused with the version that has it."""

import pytest
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING

from stonechat_models.backends.transformers import kinds
from stonechat_models.backends.transformers.newer_types import TYPES_BY_VERSION
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.errors import UnsupportedModelError


@pytest.mark.parametrize("version", TYPES_BY_VERSION)
def test_the_installed_version_has_the_types_that_it_should_have(version):
    is_there = Version(transformers.__version__) >= Version(version)
    assert {each in CONFIG_MAPPING for each in TYPES_BY_VERSION[version]} == {is_there}


def test_the_version_that_has_a_type_is_named(monkeypatch):
    monkeypatch.delitem(kinds.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "internlm3", raising=False)
    config = parse_config(
        {"model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"]}, "x"
    )
    reason = (
        f"transformers, {transformers.__version__}, has no .* type internlm3; version 5.23 has it"
    )
    with pytest.raises(UnsupportedModelError, match=reason):
        kinds.auto_class(config)
