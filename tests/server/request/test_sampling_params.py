"""Sampling parameters: the request's own come first, then the model's, then those of the API."""

from dataclasses import replace

import pytest

from stonechat_models import SamplingDefaults, SamplingParams
from stonechat_server.request.sampling_params import to_sampling_params
from stonechat_server.schema.requests import ChatCompletionRequest
from tests.server.fake_engine import model_info

RECOMMENDED = SamplingDefaults(
    temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.1
)
OF_THE_API = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
RECOMMENDED_VALUES = {
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
}


def params(defaults: SamplingDefaults, **fields: object) -> SamplingParams:
    request = ChatCompletionRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    )
    model = replace(model_info(), sampling_defaults=defaults)
    return to_sampling_params(request, model, 3, 100_000)


@pytest.mark.parametrize("name", OF_THE_API)
def test_the_first_value_counts(name: str) -> None:
    assert getattr(params(SamplingDefaults()), name) == OF_THE_API[name]
    assert getattr(params(RECOMMENDED), name) == RECOMMENDED_VALUES[name]
    own = 5 if name == "top_k" else 0.5
    assert getattr(params(RECOMMENDED, **{name: own}), name) == own


@pytest.mark.parametrize("name", ["temperature", "top_k", "min_p"])
def test_zero_is_a_value(name: str) -> None:
    assert getattr(params(RECOMMENDED, **{name: 0}), name) == 0
