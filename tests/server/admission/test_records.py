"""What requests with several prompts cost."""

from stonechat_server.admission.fair_queue import Cost
from stonechat_server.admission.records import total_cost


def test_a_list_of_prompts_is_charged_whole_and_runs_in_part() -> None:
    costs = [Cost(10, 5), Cost(100, 5), Cost(20, 5), Cost(30, 5)]
    cost = total_cost(costs, max_sequences=2, max_tokens=1_000)
    assert (cost.tokens, cost.num_sequences) == (180, 2)
    assert cost.running_tokens == 105 + 35  # the largest that may run together
    assert total_cost(costs, max_sequences=9, max_tokens=150) == Cost(160, 20, 2, 140)
    assert total_cost(costs, max_sequences=9, max_tokens=1_000).running_tokens == cost.tokens


def test_choices_are_sequences() -> None:
    costs = [Cost(10, 4 * 5, 4)] * 5
    assert total_cost(costs, max_sequences=9, max_tokens=1_000).num_sequences == 8


def test_one_prompt_runs_even_if_it_is_too_large() -> None:
    costs = [Cost(500, 5, 3), Cost(1, 1, 3)]
    assert total_cost(costs, max_sequences=1, max_tokens=10) == Cost(501, 6, 3, 505)
