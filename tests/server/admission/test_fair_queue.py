"""The order of the fair queue, what it forgets, and whom it evicts."""

from stonechat_server.access.keys import ApiKey
from stonechat_server.admission import fair_queue
from stonechat_server.admission.fair_queue import Admission, Cost, FairQueue


def waiter(tenant: str, priority: int = 0, tokens: int = 10) -> Admission:
    return Admission(ApiKey(name=tenant, priority=priority), tenant, Cost(tokens, tokens))


def filled(*waiters: Admission) -> FairQueue:
    queue = FairQueue(max_requests=100, max_tokens=10_000)
    for one in waiters:
        queue.push(one)
    return queue


def served_order(queue: FairQueue) -> list[str]:
    order = []
    while queue.num_waiters:
        turn = queue.peek(lambda _: True)
        assert turn is not None
        queue.serve(turn)
        order.append(turn.tenant)
    return order


def test_waiters_are_counted() -> None:
    waiters = [waiter("a"), waiter("b"), waiter("a"), waiter("c", 1)]
    queue = filled(*waiters)
    queue.remove(waiters[0])
    assert (queue.num_waiters, queue.num_tokens) == (3, 30)
    assert filled().num_waiters == 0


def test_tenants_take_turns_by_the_tokens_they_received() -> None:
    flood = [waiter("flood") for _ in range(4)]
    assert served_order(filled(*flood, waiter("quiet"), waiter("quiet"))) == [
        "flood", "quiet", "flood", "quiet", "flood", "flood",
    ]  # fmt: skip
    dear = filled(waiter("dear", tokens=30), waiter("dear", tokens=30))
    for _ in range(4):
        dear.push(waiter("cheap"))
    assert served_order(dear) == ["dear", "cheap", "cheap", "cheap", "dear", "cheap"]


def test_the_best_priority_goes_first_and_a_blocked_tenant_is_skipped() -> None:
    queue = filled(waiter("low", 5), waiter("high", -1))
    turn = queue.peek(lambda _: True)
    assert turn is not None
    assert turn.tenant == "high"
    turn = queue.peek(lambda one: one.tenant != "high")
    assert turn is not None
    assert turn.tenant == "low"
    assert queue.peek(lambda _: False) is None


def test_tenants_that_owe_nothing_are_forgotten() -> None:
    queue = filled()
    for number in range(fair_queue.MAX_REMEMBERED_TENANTS * 2):
        queue.serve_at_once(waiter(f"t{number}"))
        queue.charge(f"t{number}", -10)
    assert len(queue._served) <= fair_queue.MAX_REMEMBERED_TENANTS


def test_forgetting_changes_no_turn() -> None:
    """A tenant ahead of the others stays behind them, and one that waits is kept."""
    greedy = waiter("greedy")
    queue = filled(waiter("waits"), greedy)
    queue.charge("greedy", 1000)
    for number in range(fair_queue.MAX_REMEMBERED_TENANTS * 2):
        queue.charge(f"t{number}", 0)
    assert len(queue._served) <= fair_queue.MAX_REMEMBERED_TENANTS
    queue.remove(greedy)
    queue.push(waiter("new"))
    queue.push(waiter("greedy"))
    assert served_order(queue) == ["waits", "new", "greedy"]


def test_an_empty_queue_has_nobody_to_evict() -> None:
    assert filled().evicted_for("a", 0) is None


def test_a_worse_priority_is_evicted_even_with_fewer_waiters() -> None:
    worse = waiter("batch", 5)
    queue = filled(waiter("a"), waiter("a"), worse)
    assert queue.evicted_for("a", 0) is worse
    assert queue.evicted_for("new", 0) is worse


def test_a_better_priority_is_never_evicted() -> None:
    queue = filled(*(waiter("vip", -1) for _ in range(5)))
    assert queue.evicted_for("a", 0) is None


def test_the_newest_of_the_longest_is_evicted_for_a_shorter_tenant() -> None:
    flood = [waiter("flood") for _ in range(3)]
    queue = filled(*flood, waiter("a"))
    assert queue.evicted_for("a", 0) is flood[-1]  # a would have 2, the flood has 3
    queue.push(waiter("a"))
    assert queue.evicted_for("a", 0) is None  # both would have 3
    assert queue.evicted_for("flood", 0) is None


def test_room_is_bounded_by_requests_and_tokens() -> None:
    queue = FairQueue(max_requests=2, max_tokens=25)
    assert queue.has_room(Cost(1000, 1000))
    queue.push(waiter("a"))
    assert queue.has_room(Cost(15, 15))
    assert not queue.has_room(Cost(16, 16))
    queue.push(waiter("a"))
    assert not queue.has_room(Cost(1, 1))
