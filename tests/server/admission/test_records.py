"""What requests with several prompts cost."""

import msgspec

from stonechat_server.admission.fair_queue import Cost
from stonechat_server.admission.limits import AdmissionLimits
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.observability.ledger.sink import to_entry


def total_cost(costs: list[Cost], max_sequences: int, max_tokens: int) -> Cost:
    """The cost of these prompts, of which so many sequences and tokens may run at a time."""
    limits = AdmissionLimits(
        max_running_sequences=max_sequences,
        max_running_tokens=max_tokens,
        max_queued_requests=1,
        max_queued_tokens=1,
        max_share=1.0,
    )
    return limits.cost_of(costs)


def test_a_list_of_prompts_is_charged_whole_and_runs_in_part() -> None:
    costs = [Cost(15, 15), Cost(105, 105), Cost(25, 25), Cost(35, 35)]
    cost = total_cost(costs, max_sequences=2, max_tokens=1_000)
    assert (cost.tokens, cost.num_sequences) == (180, 2)
    assert cost.running_tokens == 105 + 35  # the largest that may run together
    assert total_cost(costs, max_sequences=9, max_tokens=150) == Cost(180, 140, 2)
    assert total_cost(costs, max_sequences=9, max_tokens=1_000).running_tokens == cost.tokens


def test_choices_are_sequences() -> None:
    costs = [Cost(30, 30, 4)] * 5
    assert total_cost(costs, max_sequences=9, max_tokens=1_000).num_sequences == 8


def test_one_prompt_runs_even_if_it_is_too_large() -> None:
    costs = [Cost(505, 505, 3), Cost(2, 2, 3)]
    assert total_cost(costs, max_sequences=1, max_tokens=10) == Cost(507, 505, 3)


def finished(*reasons: str, num_choices: int) -> FinishedRequest:
    return FinishedRequest(
        request_id="r",
        endpoint="/v1/completions",
        key="k",
        user=None,
        safety_identifier=None,
        model="m",
        status=200,
        error_code=None,
        stream=False,
        num_prompt_tokens=1,
        num_cached_tokens=0,
        num_completion_tokens=1,
        finish_reasons=reasons,
        num_choices=num_choices,
        timings=None,
        created=1.0e9,
        started=1.0,
        finished=2.0,
    )


def test_the_reasons_of_many_choices_are_counted() -> None:
    few = to_entry(finished("stop", "length", "stop", num_choices=3))
    assert (few.finish_reasons, few.num_choices) == ("stop,length,stop", 3)
    all_listed = to_entry(finished(*["stop"] * 128, num_choices=128))
    assert all_listed.finish_reasons.count("stop") == 128
    many = to_entry(finished(*["stop", "length"] * 1000, "abort", num_choices=1))
    assert (many.finish_reasons, many.num_choices) == ("stop*1000,length*1000,abort*1", 1)
    assert len(msgspec.json.encode(many)) < 400
