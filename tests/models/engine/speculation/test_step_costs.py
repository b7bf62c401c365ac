"""What is learned from the times of steps."""

import pytest

from stonechat_models.engine.speculation.step_costs import StepCosts


def measured(costs, num_seqs, seconds_by_drafts, times=40):
    for _ in range(times):
        for num_drafts, seconds in seconds_by_drafts.items():
            costs.observe(num_seqs, seconds, num_drafts)
    return costs


def test_nothing_is_known_of_sizes_that_never_ran():
    costs = measured(StepCosts(), 2, {0: 0.010})
    assert costs.plain_seconds(2) == pytest.approx(0.010)
    assert costs.plain_seconds(1) is None


def test_draft_tokens_cost_something_before_they_are_measured():
    assert StepCosts().curve(1, 4)[:5] == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert StepCosts().curve(4, 2)[:3] == [1.0, 1.0625, 1.125]


def test_the_cost_is_relative_to_a_step_without_draft_tokens():
    costs = measured(StepCosts(), 1, {0: 0.010, 2: 0.012, 4: 0.018})
    assert costs.curve(1, 6)[:7] == pytest.approx([1.0, 1.1, 1.2, 1.5, 1.8, 1.95, 2.1], abs=0.02)
    # Everything twice as slow, because contexts are longer or the machine is busy: same ratios.
    measured(costs, 1, {0: 0.020, 2: 0.024, 4: 0.036})
    assert costs.curve(1, 4)[:5] == pytest.approx([1.0, 1.1, 1.2, 1.5, 1.8], abs=0.02)


def test_the_first_measurements_replace_the_guess_soon():
    costs = measured(StepCosts(), 1, {0: 0.010, 4: 0.011}, times=3)
    assert costs.curve(1, 4)[4] < 1.4
    assert measured(costs, 1, {0: 0.010, 4: 0.011}, times=20).curve(1, 4)[4] < 1.12


def test_more_draft_tokens_never_count_as_cheaper():
    costs = measured(StepCosts(), 1, {0: 0.010, 2: 0.020, 3: 0.015})
    curve = costs.curve(1, 8)
    assert curve == sorted(curve)


def test_a_long_pause_in_a_step_is_no_cost():
    costs = measured(StepCosts(), 1, {0: 0.010, 4: 0.012})
    costs.observe(1, 10.0, 4)
    assert costs.curve(1, 4)[4] < 2.0
    costs.observe(1, 10.0, 0)
    assert costs.plain_seconds(1) < 0.020


def test_steps_without_draft_tokens_are_measured_again():
    costs = StepCosts()
    costs.observe(1, 0.020, 0)
    assert costs.plain_seconds(1) is None  # the first may be cold
    costs.observe(1, 0.010, 0)
    assert costs.plain_seconds(1) == pytest.approx(0.015)
    for _ in range(99):
        costs.observe(1, 0.015, 2)
        assert costs.plain_seconds(1) is not None
    costs.observe(1, 0.015, 2)
    assert costs.plain_seconds(1) is None
    costs.observe(1, 0.010, 0)
    assert costs.plain_seconds(1) < 0.015


def test_sizes_do_not_mix():
    costs = measured(StepCosts(), 1, {0: 0.010, 4: 0.030})
    measured(costs, 32, {0: 0.100, 32: 0.110})
    assert costs.curve(1, 4)[4] == pytest.approx(3.0, abs=0.15)
    assert costs.curve(32, 32)[32] == pytest.approx(1.1, abs=0.02)
    assert costs.curve(31, 32)[32] == pytest.approx(1.1, abs=0.02)


def test_a_high_cost_is_forgotten_in_time():
    costs = measured(StepCosts(), 1, {0: 0.010, 1: 0.030})
    before = costs.curve(1, 1)[1]
    measured(costs, 1, {0: 0.010}, times=64)
    assert 2.5 < costs.curve(1, 1)[1] < before - 0.05
    measured(costs, 1, {0: 0.010}, times=64 * 60)
    assert costs.curve(1, 1)[1] < 1.2


def test_a_step_with_drafts_alone_says_nothing():
    costs = StepCosts()
    costs.observe(1, 0.010, 4)
    assert costs.plain_seconds(1) is None
    assert costs.curve(1, 4)[4] == 2.0
