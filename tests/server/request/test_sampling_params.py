"""Sampling parameters: the request's own come first, then the model's, then those of the API."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from stonechat_models import PromptTooLongError, SamplingDefaults, SamplingParams
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.errors import APIError
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


def test_a_request_may_generate_nothing() -> None:
    model = replace(model_info(), max_model_len=10)
    request = CompletionRequest.model_validate({"prompt": "x", "max_tokens": 0})
    assert to_sampling_params(request, model, 10, 100).max_tokens == 0
    with pytest.raises(PromptTooLongError):
        to_sampling_params(request, model, 11, 100)
    one = CompletionRequest.model_validate({"prompt": "x", "max_tokens": 1})
    assert to_sampling_params(one, model, 9, 100).max_tokens == 1
    with pytest.raises(PromptTooLongError):
        to_sampling_params(one, model, 10, 100)


def test_all_prompts_share_the_bound() -> None:
    request = CompletionRequest.model_validate({"prompt": ["x"] * 4, "max_tokens": -1, "n": 2})
    assert to_sampling_params(request, model_info(), 3, 800, num_prompts=4).max_tokens == 100
    limited = CompletionRequest.model_validate({"prompt": ["x"] * 4, "max_tokens": 201})
    with pytest.raises(APIError, match="4 choices of up to 201 tokens"):
        to_sampling_params(limited, model_info(), 3, 800, num_prompts=4)


def test_a_whole_number_may_be_written_with_a_fraction() -> None:
    """PHP and R write 100.0, as do Python's clients that keep all settings as floats."""
    written = {"max_tokens": 100.0, "seed": 7.0, "n": 2.0, "top_k": 5.0, "min_tokens": 1e1}
    found = params(SamplingDefaults(), **written)
    assert found == params(SamplingDefaults(), **{k: int(v) for k, v in written.items()})
    assert isinstance(found.max_tokens, int)
    for name in written:
        with pytest.raises(ValidationError):
            params(SamplingDefaults(), **{name: 1.5})
