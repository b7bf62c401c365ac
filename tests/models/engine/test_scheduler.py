"""The scheduler keeps its invariants, also under random loads. No model is needed."""

import random

import pytest

from stonechat_models.engine.scheduler import Scheduler
from stonechat_models.engine.sequence import Sequence, SequenceGroup
from stonechat_models.sampling.state import SamplingState
from stonechat_models.types import GenerateRequest, SamplingParams


def make_request(request_id, prompt, n=1, max_tokens=8, priority=0, arrival=0.0, salt=""):
    request = GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(n=n),
        priority=priority,
        cache_salt=salt,
        arrival_time=arrival,
    )
    group = SequenceGroup(request)
    for index in range(n):
        state = SamplingState(request.params, 0, index, prompt)
        group.sequences.append(Sequence(group, state, list(prompt), len(prompt), max_tokens))
    return group


def make_scheduler(num_blocks=32, block_size=4, max_batch_tokens=32, max_num_seqs=8, caching=True):
    return Scheduler(
        num_blocks=num_blocks,
        block_size=block_size,
        max_batch_tokens=max_batch_tokens,
        max_num_seqs=max_num_seqs,
        prefix_caching=caching,
    )


def has_work(scheduler):
    return bool(scheduler.waiting or scheduler.running)


def id_of(sequence):
    return sequence.group.request.request_id


def run_step(scheduler, choose=lambda sequence: 7):
    """Run one engine step without a model. Return the schedule and the sequences that ended."""
    plan = scheduler.schedule()
    ended_sequences = []
    for item in plan.scheduled:
        reaches_end = item.reaches_end
        scheduler.finish_step(item)
        if not reaches_end:
            continue
        sequence = item.sequence
        sequence.append(choose(sequence))
        if sequence.num_output_tokens >= sequence.max_tokens:
            ended_sequences.append(sequence)
    for sequence in ended_sequences:
        scheduler.remove(sequence)
    return plan, ended_sequences


def run_to_end(scheduler, limit=1000):
    for _ in range(limit):
        if not has_work(scheduler):
            return
        run_step(scheduler)
        scheduler.check_integrity()
    pytest.fail("requests did not end")


def test_prompt_is_computed_in_parts_under_the_budget():
    scheduler = make_scheduler(max_batch_tokens=10)
    scheduler.add(make_request("a", list(range(25))))
    num_tokens = [run_step(scheduler)[0].scheduled[0].num_tokens for _ in range(4)]
    assert num_tokens == [10, 10, 5, 1]


def test_decoding_goes_before_a_long_prompt():
    scheduler = make_scheduler(max_batch_tokens=8)
    scheduler.add(make_request("first", list(range(30)), arrival=0.0))
    scheduler.add(make_request("second", [1, 2], arrival=1.0, max_tokens=20))
    second_steps = 0
    while not second_steps and has_work(scheduler):
        plan, _ = run_step(scheduler)
        second_steps += any(id_of(i.sequence) == "second" for i in plan.scheduled)
    scheduler.add(make_request("third", list(range(100, 128)), arrival=2.0))
    plan, _ = run_step(scheduler)
    assert [id_of(i.sequence) for i in plan.scheduled] == ["first", "second", "third"]
    assert [i.num_tokens for i in plan.scheduled] == [1, 1, 6]


def test_lower_priority_number_is_admitted_first():
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request("late", [1], priority=1, arrival=0.0))
    scheduler.add(make_request("urgent", [2], priority=0, arrival=1.0))
    plan, _ = run_step(scheduler)
    assert [id_of(i.sequence) for i in plan.scheduled] == ["urgent"]


def test_second_prompt_reads_the_first_ones_full_blocks():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", list(range(12)), max_tokens=1))
    run_to_end(scheduler)
    again = make_request("b", list(range(12)), max_tokens=1)
    scheduler.add(again)
    plan, _ = run_step(scheduler)
    # The last token is computed again, so its block is not read from the cache.
    assert again.num_cached_tokens == 8
    assert plan.scheduled[0].num_tokens == 4


def test_generated_tokens_are_cached_too():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1, 2, 3], max_tokens=6))
    run_to_end(scheduler)
    longer = make_request("b", [1, 2, 3, 7, 7, 7, 7, 7, 7, 9])
    scheduler.add(longer)
    run_step(scheduler)
    assert longer.num_cached_tokens == 8


def test_another_salt_shares_nothing():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", list(range(12)), max_tokens=1))
    run_to_end(scheduler)
    other = make_request("b", list(range(12)), salt="tenant")
    scheduler.add(other)
    run_step(scheduler)
    assert other.num_cached_tokens == 0


def test_without_prefix_caching_nothing_is_read():
    scheduler = make_scheduler(caching=False)
    for request_id in "ab":
        request = make_request(request_id, list(range(12)), max_tokens=1)
        scheduler.add(request)
        run_to_end(scheduler)
        assert request.num_cached_tokens == 0


@pytest.mark.parametrize("prompt_len", [1, 4, 5, 8, 11])
@pytest.mark.parametrize("caching", [True, False])
def test_choices_share_the_prompts_full_blocks_and_copy_the_last(prompt_len, caching):
    scheduler = make_scheduler(caching=caching)
    group = make_request("a", list(range(prompt_len)), n=3)
    scheduler.add(group)
    first, _ = run_step(scheduler)
    assert [i.sequence.index for i in first.scheduled] == [0]
    second, _ = run_step(scheduler)
    assert sorted(i.sequence.index for i in second.scheduled) == [0, 1, 2]
    assert [i.num_tokens for i in second.scheduled] == [1, 1, 1]
    leader, *others = group.sequences
    shared = (prompt_len - 1) // 4
    assert len(second.block_copies) == 2
    for follower, (source, destination) in zip(others, second.block_copies, strict=True):
        assert follower.block_table[:shared] == leader.block_table[:shared]
        assert source == leader.block_table[shared]
        assert destination == follower.block_table[shared]
        assert destination != source
    scheduler.check_integrity()
    assert group.prompt_blocks == []
    run_to_end(scheduler)
    assert scheduler.pool.num_used == 0


def test_leader_that_ends_at_once_still_lets_the_others_fork():
    scheduler = make_scheduler()
    group = make_request("a", list(range(9)), n=4, max_tokens=1)
    scheduler.add(group)
    run_step(scheduler)
    plan, ended_sequences = run_step(scheduler)
    assert len(plan.block_copies) == 3
    assert len(ended_sequences) == 3
    assert scheduler.pool.num_used == 0


def test_aborted_leader_hands_the_prompt_to_the_next_choice():
    scheduler = make_scheduler(max_batch_tokens=4)
    group = make_request("a", list(range(10)), n=2)
    scheduler.add(group)
    run_step(scheduler)
    scheduler.remove(group.sequences[0])
    scheduler.check_integrity()
    plan, _ = run_step(scheduler)
    assert [i.sequence.index for i in plan.scheduled] == [1]
    run_to_end(scheduler)


def test_preempted_sequence_keeps_its_tokens_and_ends():
    scheduler = make_scheduler(num_blocks=6, caching=False)
    groups = [make_request(i, list(range(8)), max_tokens=12, arrival=n) for n, i in enumerate("ab")]
    for group in groups:
        scheduler.add(group)
    sequences = [group.sequences[0] for group in groups]
    run_to_end(scheduler)
    assert scheduler.num_preemptions > 0
    assert [s.num_output_tokens for s in sequences] == [12, 12]


@pytest.mark.parametrize("seed", range(12))
def test_random_load_leaks_nothing_and_ends(seed):
    rng = random.Random(seed)
    num_blocks = rng.choice([8, 16, 40])
    block_size = rng.choice([1, 2, 4])
    scheduler = make_scheduler(
        num_blocks=num_blocks,
        block_size=block_size,
        max_batch_tokens=rng.choice([1, 5, 16, 64]),
        max_num_seqs=rng.choice([1, 3, 8]),
        caching=rng.random() < 0.7,
    )
    capacity = num_blocks * block_size
    live: list[SequenceGroup] = []
    expected, lengths = {}, {}
    for step in range(5000):
        if step >= 250 and not has_work(scheduler):
            break
        if step < 250 and rng.random() < 0.4:
            n = rng.choice([1, 1, 1, 2, 4])
            length = rng.randint(1, max(1, capacity // 2))
            prompt = [rng.choice([1, 2]) for _ in range(length)]
            max_tokens = rng.randint(1, max(1, min(10, capacity - length - 1)))
            group = make_request(
                f"r{step}", prompt, n, max_tokens, rng.choice([0, 0, 1]), float(step)
            )
            scheduler.add(group)
            live.append(group)
            expected[f"r{step}"] = (n, max_tokens)
        if live and step < 250 and rng.random() < 0.1:
            group = rng.choice(live)
            for sequence in list(group.sequences):
                if rng.random() < 0.7:
                    scheduler.remove(sequence)
                    expected.pop(group.request.request_id, None)
        plan, ended_sequences = run_step(scheduler, lambda _: rng.choice([1, 2]))
        assert sum(i.num_tokens for i in plan.scheduled) <= scheduler.max_batch_tokens
        assert len(scheduler.running) <= scheduler.max_num_seqs
        written_blocks = [
            i.sequence.block_table[p // block_size]
            for i in plan.scheduled
            for p in {i.sequence.num_computed - 1}
            if i.sequence.block_table
        ]
        assert len(written_blocks) == len(set(written_blocks)), "two sequences wrote to one block"
        for sequence in ended_sequences:
            lengths.setdefault(id_of(sequence), []).append(sequence.num_output_tokens)
        scheduler.check_integrity()
        live = [g for g in live if g.sequences]
    assert not has_work(scheduler), "requests did not end"
    assert scheduler.pool.num_used == 0
    for request_id, (n, max_tokens) in expected.items():
        assert lengths[request_id] == [max_tokens] * n


def first_steps(scheduler, names, limit=60):
    """The step, counted from here, at which each of these requests computes its first tokens."""
    found = {}
    for step in range(limit):
        plan, _ = run_step(scheduler)
        scheduler.check_integrity()
        for item in plan.scheduled:
            found.setdefault(id_of(item.sequence), step)
        if names <= found.keys():
            break
    return {name: found.get(name) for name in names}


def test_a_better_priority_takes_the_places_of_a_worse_one():
    scheduler = make_scheduler(num_blocks=64, max_num_seqs=4)
    for i in range(8):
        scheduler.add(make_request(f"low-{i}", [i, 1, 2], max_tokens=20, priority=9, arrival=i))
    run_step(scheduler)
    assert len(scheduler.running) == 4
    for i in range(3):
        scheduler.add(make_request(f"high-{i}", [50 + i, 1], max_tokens=6, arrival=10 + i))
    steps = first_steps(scheduler, {"high-0", "high-1", "high-2"})
    assert steps == {"high-0": 0, "high-1": 0, "high-2": 0}
    assert [id_of(s) for s in scheduler.running if s.order[0]] == ["low-0"]
    assert scheduler.num_preemptions == 3
    run_to_end(scheduler)
    assert scheduler.num_preemptions == 3


def test_a_better_priority_takes_the_blocks_of_a_worse_one():
    scheduler = make_scheduler(num_blocks=16, block_size=4, max_batch_tokens=64)
    for i in range(3):
        prompt = [100 * i + j for j in range(16)]
        scheduler.add(make_request(f"low-{i}", prompt, max_tokens=4, priority=1, arrival=i))
    run_step(scheduler)
    assert len(scheduler.running) == 3
    scheduler.add(make_request("high", list(range(500, 524)), max_tokens=4, arrival=9))
    assert first_steps(scheduler, {"high"}) == {"high": 0}
    assert "low-0" in {id_of(s) for s in scheduler.running}
    run_to_end(scheduler)


def test_nothing_is_preempted_for_a_request_that_would_not_fit_even_so():
    scheduler = make_scheduler(num_blocks=16, block_size=4, max_batch_tokens=64)
    scheduler.add(make_request("same", list(range(32)), max_tokens=8))
    scheduler.add(make_request("low", list(range(100, 108)), max_tokens=8, priority=1))
    run_step(scheduler)
    scheduler.add(make_request("high", list(range(500, 540)), max_tokens=4, arrival=9))
    run_step(scheduler)
    assert {id_of(s) for s in scheduler.running} == {"same", "low"}
    assert scheduler.num_preemptions == 0
    run_to_end(scheduler)


def test_equal_priorities_preempt_nothing():
    scheduler = make_scheduler(max_num_seqs=2)
    for i in range(4):
        scheduler.add(make_request(f"r{i}", [i, 1, 2], priority=5, arrival=i))
    run_to_end(scheduler)
    assert scheduler.num_preemptions == 0


@pytest.mark.parametrize("seed", range(5))
def test_random_priorities_all_end_and_the_best_never_wait_for_worse_ones(seed):
    generator = random.Random(seed)
    scheduler = make_scheduler(num_blocks=24, block_size=4, max_batch_tokens=16, max_num_seqs=4)
    for i in range(60):
        prompt = [generator.randrange(50) for _ in range(generator.randint(1, 20))]
        priority = generator.choice([0, 0, 3, 9])
        group = make_request(
            f"r{i}", prompt, n=generator.choice([1, 1, 3]), priority=priority, arrival=i
        )
        scheduler.add(group)
        for _ in range(generator.randint(0, 3)):
            run_step(scheduler)
            scheduler.check_integrity()
            ranks = [s.order[0] for s in scheduler.running]
            assert ranks == sorted(ranks)
    run_to_end(scheduler, 3000)
