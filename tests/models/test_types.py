"""The ranges of sampling parameters, as the pages in docs/api state them."""

import math
from typing import Any

import pytest

from stonechat_models import InvalidParamsError, SamplingParams, StopRules


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("n", (1, 128)),
        ("temperature", (0.0, 2.0)),
        ("top_p", (0.0, 1.0)),
        ("top_k", (0, 10**6)),
        ("min_p", (0.0, 1.0)),
        ("seed", (-(2**63), 2**63 - 1, None)),
        ("frequency_penalty", (-2.0, 2.0)),
        ("presence_penalty", (-2.0, 2.0)),
        ("repetition_penalty", (0.01, 10.0)),
        ("logit_bias", ({1: -100.0}, {1: 100.0})),
        ("top_logprobs", (0, 20, None)),
        ("prompt_logprobs", (0, 20, None)),
        ("max_tokens", (0, 1, None)),
        ("min_tokens", (0, 10)),
    ],
)
def test_the_ends_of_a_range_are_allowed(param: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(SamplingParams(**{param: value}), param) == value


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("n", (0, 129)),
        ("temperature", (-0.1, 2.1, math.nan)),
        ("top_p", (-0.1, 1.1, math.nan)),
        ("top_k", (-1,)),
        ("min_p", (-0.1, 1.1)),
        ("seed", (-(2**63) - 1, 2**63)),
        ("frequency_penalty", (-2.1, 2.1)),
        ("presence_penalty", (-2.1, 2.1, math.inf)),
        ("repetition_penalty", (0.0, 1e-40, 0.0099, -1.0, 10.1, math.nan)),
        ("logit_bias", ({1: 100.1}, {1: 0.0, 2: -101.0}, {1: math.nan})),
        ("top_logprobs", (-1, 21)),
        ("prompt_logprobs", (-1, 21)),
        ("max_tokens", (-1,)),
        ("min_tokens", (-1,)),
    ],
)
def test_what_is_outside_is_refused_by_name(param: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(InvalidParamsError) as error_info:
            SamplingParams(**{param: value})
        assert error_info.value.param == param
        assert param in str(error_info.value)


def test_stop_strings_are_few_and_not_empty() -> None:
    many = tuple(str(number) for number in range(64))
    assert StopRules(strings=many).strings == many
    with pytest.raises(InvalidParamsError, match="at most 64"):
        StopRules(strings=(*many, "x"))
    with pytest.raises(InvalidParamsError, match="must not be empty"):
        StopRules(strings=("a", ""))
