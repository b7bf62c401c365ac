"""Slots of recurrent state: who has one, where snapshots are kept, and who begins with one."""

import pytest

from stonechat_models.engine.cache import state_slots
from stonechat_models.engine.cache.state_slots import StateSlots
from stonechat_models.engine.scheduler import Scheduler
from tests.models.engine.test_scheduler import make_request

BLOCK_SIZE = 4


def make_scheduler(num_slots=8, max_num_seqs=2, prefix_caching=True, **changes):
    states = StateSlots(
        num_slots,
        max_num_seqs,
        BLOCK_SIZE,
        **{"exact_chunks": True, "prefix_caching": prefix_caching, **changes},
    )
    return Scheduler(
        num_blocks=64,
        block_size=BLOCK_SIZE,
        max_batch_tokens=64,
        max_num_seqs=max_num_seqs,
        prefix_caching=prefix_caching,
        states=states,
    )


def step(scheduler):
    """Run a step. Returns (start, tokens) of its items, and the copies before it."""
    output = scheduler.schedule()
    for item in output.scheduled:
        item.sequence.num_state_tokens = item.context_len
    for item in output.scheduled:
        scheduler.finish_step(item)
        if item.reaches_end:
            item.sequence.append(7)
    scheduler.check_integrity()
    return [(i.start, i.num_tokens) for i in output.scheduled], output.state_copies


def end(scheduler):
    for sequence in [*scheduler.running]:
        scheduler.remove(sequence)


def run_prompt(scheduler, name, prompt, **changes):
    """Compute a whole prompt and end its request. Returns the items and the copies."""
    scheduler.add(make_request(name, prompt, 1, 5, **changes))
    items, copies = [], []
    while not any(s.num_output_tokens for s in scheduler.running):
        new_items, new_copies = step(scheduler)
        items += new_items
        copies += new_copies
    end(scheduler)
    return items, copies


def test_a_snapshot_is_kept_at_the_prompts_last_whole_block():
    scheduler = make_scheduler()
    items, copies = run_prompt(scheduler, "first", list(range(10)))
    assert items == [(0, 8), (8, 2)]
    ((slot, snapshot),) = copies
    assert slot < 2 <= snapshot


def test_a_prompt_with_the_same_beginning_starts_from_the_snapshot():
    scheduler = make_scheduler()
    _, [(_, snapshot)] = run_prompt(scheduler, "first", list(range(10)))
    items, copies = run_prompt(scheduler, "second", [*range(9), 50, 51, 52, 53])
    assert items == [(8, 4), (12, 1)]
    assert copies[0][0] == snapshot


def test_blocks_without_a_snapshot_are_computed_again():
    scheduler = make_scheduler()
    run_prompt(scheduler, "first", list(range(10)))
    items, _ = run_prompt(scheduler, "second", [*range(5), 50, 51])
    assert items == [(0, 4), (4, 3)]


def test_long_prompts_have_snapshots_in_between(monkeypatch):
    monkeypatch.setattr(state_slots, "SNAPSHOT_INTERVAL", 8)
    scheduler = make_scheduler()
    items, copies = run_prompt(scheduler, "first", list(range(30)))
    assert items == [(0, 8), (8, 8), (16, 8), (24, 4), (28, 2)]
    assert len({snapshot for _, snapshot in copies}) == 4
    items, _ = run_prompt(scheduler, "second", [*range(20), *range(100, 110)])
    assert items[0] == (16, 8)


def test_the_snapshot_used_longest_ago_makes_room():
    scheduler = make_scheduler(num_slots=4)
    a, b, c = ([i] * 9 for i in (1, 2, 3))
    run_prompt(scheduler, "a", a)
    run_prompt(scheduler, "b", b)
    run_prompt(scheduler, "a again", a)
    run_prompt(scheduler, "c", c)
    assert run_prompt(scheduler, "a once more", a)[0] == [(8, 1)]
    assert run_prompt(scheduler, "b again", b)[0] == [(0, 8), (8, 1)]


def test_salts_share_no_snapshots():
    scheduler = make_scheduler()
    run_prompt(scheduler, "first", list(range(10)), salt="x")
    assert run_prompt(scheduler, "second", list(range(10)), salt="y")[0][0] == (0, 8)
    assert run_prompt(scheduler, "third", list(range(3)), salt="y")[0] == [(0, 3)]


def test_a_salt_is_no_text():
    """Salt and text are hashed one after the other, but never as one."""
    scheduler = make_scheduler()
    scheduler.add(make_request("r", [1, 2, 3], 2, 5))
    while len(scheduler.running) < 2:
        step(scheduler)
    end(scheduler)
    scheduler.add(make_request("other", [2, 3], 2, 5, salt="\x01" + "\0" * 7))
    copies = []
    while len(scheduler.running) < 2:
        copies += step(scheduler)[1]
    assert len(copies) == 2  # a snapshot of its own, and the follower's copy of that
    end(scheduler)


def test_released_slots_are_reported_once_and_not_while_they_are_used_again():
    scheduler = make_scheduler()
    run_prompt(scheduler, "r", [1, 2, 3])
    states = scheduler.states
    assert len(states.take_released()) == 1
    assert states.take_released() == []
    run_prompt(scheduler, "r", [1, 2, 3])
    run_prompt(scheduler, "r", [1, 2, 3])
    assert len(states.take_released()) == 1


def test_a_failed_steps_state_is_not_kept():
    scheduler = make_scheduler()
    scheduler.add(make_request("r", list(range(10)), 1, 5))
    step(scheduler)
    scheduler.running[0].num_state_tokens = -1
    assert step(scheduler)[1] == []


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_choices_begin_with_the_state_before_the_last_token(prefix_caching):
    scheduler = make_scheduler(prefix_caching=prefix_caching)
    scheduler.add(make_request("r", list(range(10)), 2, 5))
    items = []
    copies = []
    while len(scheduler.running) < 2:
        new_items, new_copies = step(scheduler)
        items += new_items
        copies += new_copies
    leader_items = [(0, 8), (8, 1), (9, 1)] if prefix_caching else [(0, 9), (9, 1)]
    assert items == [*leader_items, (10, 1), (9, 1)]
    assert copies[-1][0] == copies[-2][1]  # the follower gets what the leader has left
    end(scheduler)


def test_a_choice_whose_snapshot_is_gone_computes_the_prompt():
    scheduler = make_scheduler(num_slots=2)  # no room for snapshots
    scheduler.add(make_request("r", list(range(10)), 2, 5))
    items = [item for _ in range(5) for item in step(scheduler)[0]]
    assert [item for item in items if item[0] == 0] == [(0, 8)] * 2
    end(scheduler)


def test_a_prompt_in_one_piece_exceeds_the_budget():
    scheduler = make_scheduler(exact_chunks=False)
    items, copies = run_prompt(scheduler, "r", list(range(100)))
    assert items == [(0, 100)]
    assert copies == []
