"""The context lengths that models are served with, and the rotary factors that go with them."""

import pytest

from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.rope_length import for_length, long_factors, uses_long_factors
from stonechat_models.checkpoint.support import context_length
from stonechat_models.errors import UnsupportedModelError

FACTORS = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
LONGROPE = {"rope_type": "longrope", **FACTORS}


def config(**keys):
    return parse_config({"max_position_embeddings": 1000, **keys}, "config.json")


def test_the_context_length_is_the_models_or_a_smaller_one():
    assert context_length(config(), None) == 1000
    assert context_length(config(), 40) == 40
    with pytest.raises(UnsupportedModelError, match=r"1001 tokens exceeds .* limit of 1000"):
        context_length(config(), 1001)
    assert context_length(parse_config({}, "config.json"), None) == 2048


def test_chunked_attention_does_not_limit_the_context_length():
    assert context_length(config(attention_chunk_size=32), None) == 1000


@pytest.mark.parametrize("keys", [{}, {"max_position_embeddings": 64}])
def test_frequencies_that_change_with_each_length_limit_it(keys):
    rope = {"rope_type": "dynamic", "original_max_position_embeddings": 64}
    dynamic = config(rope_parameters=rope, **keys)
    assert context_length(dynamic, None) == 64
    with pytest.raises(UnsupportedModelError, match="limit of 64"):
        context_length(dynamic, 65)
    assert not uses_long_factors(dynamic, 65)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 64}},
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
        {"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": 64},
        {"rope_scaling": {"type": "su", **FACTORS}, "original_max_position_embeddings": 64},
        {
            "model_type": "phi3",
            "rope_scaling": {"type": "yarn", **FACTORS},
            "original_max_position_embeddings": 64,
        },
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 500},
        },
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default"},
                "full_attention": {**LONGROPE, "original_max_position_embeddings": 64},
            }
        },
        {"text_config": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}},
    ],
    ids=["in", "beside", "old", "su", "phi3-yarn", "both", "by layer", "composite"],
)
def test_longer_contexts_than_the_original_are_served_if_they_are_requested(keys):
    model = config(**keys)
    assert context_length(model, None) == 64
    assert context_length(model, 1000) == 1000
    with pytest.raises(UnsupportedModelError, match="limit of 1000"):
        context_length(model, 1001)
    assert [uses_long_factors(model, n) for n in (None, 40, 64, 65)] == [False, False, False, True]


def test_phi3_has_an_original_length_by_default():
    model = config(model_type="phi3", max_position_embeddings=131072, rope_scaling=LONGROPE)
    assert context_length(model, None) == 4096
    other = config(model_type="llama", max_position_embeddings=131072, rope_scaling=LONGROPE)
    assert context_length(other, None) == 131072


def test_the_long_factors_replace_the_short_ones():
    rope = {**LONGROPE, "long_mscale": 1.2, "short_mscale": 1.1, "factor": 4.0}
    expected = {**rope, "short_factor": [3.0, 4.0], "short_mscale": 1.2}
    assert long_factors(rope) == expected
    nested = {"full_attention": rope, "sliding_attention": {"rope_type": "default"}}
    assert long_factors(nested) == {**nested, "full_attention": expected}
    assert rope["short_factor"] == [1.0, 2.0]


def test_a_config_keeps_its_short_factors_up_to_the_original_length():
    model = config(rope_parameters=LONGROPE, original_max_position_embeddings=64)
    assert for_length(model, None) is model
    assert for_length(model, 64) is model
    assert for_length(model, 65).rope.values == long_factors(LONGROPE)
    assert for_length(model, 65).rope.source == model.rope.source
