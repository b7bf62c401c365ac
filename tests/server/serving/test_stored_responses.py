"""The store of responses: what it shares, what it drops first, and what it counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonechat_server.serving.stored_responses import (
    OVERHEAD_BYTES,
    ResponseStore,
    StoredResponse,
)

BODY = b'{"output":[{"id":"msg_1","type":"message"}]}'
SIZE = OVERHEAD_BYTES + len(b"[1]") + len(BODY)
DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def new_store(num: float = 100, max_responses: int = 1000, max_age: float = DAY) -> ResponseStore:
    """A store that has room for so many responses of `SIZE`."""
    return ResponseStore(int(num * SIZE), max_responses, max_age, Clock())


def add(
    store: ResponseStore, id: str, previous: StoredResponse | None = None, owner: str = "o"
) -> StoredResponse:
    response = StoredResponse(owner, b"[1]", previous)
    assert store.begin(response)
    assert store.complete(response, id, BODY)
    return response


def kept(store: ResponseStore, ids: str, owner: str = "o") -> str:
    """Which of the ids are found. Looks in an order that leaves the least recently used first."""
    return "".join(id for id in ids if store.find(owner, id))


def test_a_response_is_found_once_it_is_complete() -> None:
    store = new_store()
    response = StoredResponse("o", b"[1]")
    assert store.begin(response)
    assert (store.num_responses, store.num_bytes) == (1, OVERHEAD_BYTES + 3)
    assert store.find("o", "a") is None
    assert store.complete(response, "a", BODY)
    assert store.find("o", "a") is response
    assert store.find("p", "a") is None
    assert store.num_bytes == SIZE
    store.abandon(response)
    assert store.find("o", "a") is response


def test_an_answer_that_never_comes_leaves_nothing() -> None:
    store = new_store()
    first = add(store, "a")
    for previous in (None, first):
        response = StoredResponse("o", b"[1]", previous)
        assert store.begin(response)
        store.abandon(response)
        assert not store.complete(response, "b", BODY)
    assert (store.num_responses, store.num_bytes, first.num_next) == (1, SIZE, 0)


def test_the_least_recently_used_goes_first() -> None:
    store = new_store(3)
    for id in "abc":
        add(store, id)
    store.find("o", "a")
    add(store, "d")
    assert kept(store, "abcd") == "acd"


def test_a_conversation_loses_its_last_turns_first() -> None:
    """The turns before an active one stay, however old they are."""
    store = new_store(5)
    one = add(store, "a")
    two = add(store, "b", add(store, "B", one))
    add(store, "x")
    add(store, "c", two)
    add(store, "y")
    assert kept(store, "aBbxcy") == "aBbcy"
    add(store, "z", add(store, "w"))
    assert kept(store, "aBbcywz") == "aBywz"


def test_branches_share_what_is_before_them() -> None:
    store = new_store(4)
    root = add(store, "r")
    for id in "abc":
        add(store, id, root)
    assert store.num_bytes == 4 * SIZE
    add(store, "d", root)
    assert kept(store, "rabcd") == "rbcd"


def test_a_thousand_turns_take_a_thousand_times_one() -> None:
    store = new_store(2000)
    response = None
    for i in range(1000):
        response = add(store, f"{i}", response)
    assert (store.num_responses, store.num_bytes) == (1000, 1000 * SIZE)
    assert response is not None
    assert len(list(response.turns())) == 1000


def test_an_owner_who_floods_the_store_loses_their_own() -> None:
    store = new_store(10)
    add(store, "a", owner="quiet")
    for i in range(50):
        add(store, f"{i}", owner="loud")
    assert store.find("quiet", "a") is not None
    assert store.num_bytes <= 10 * SIZE


def test_what_has_no_room_alone_drops_nothing() -> None:
    store = new_store(3)
    first = add(store, "a")
    assert not store.begin(StoredResponse("o", bytes(3 * SIZE)))
    assert not store.begin(StoredResponse("o", bytes(2 * SIZE), first))
    assert kept(store, "a") == "a"


def test_an_answer_that_has_no_room_is_not_stored() -> None:
    store = new_store(3)
    response = StoredResponse("o", b"[1]")
    assert store.begin(response)
    assert not store.complete(response, "a", bytes(3 * SIZE))
    assert (store.num_responses, store.num_bytes) == (0, 0)


def test_what_is_dropped_takes_no_memory_while_its_request_runs() -> None:
    store = new_store(3)
    running = [StoredResponse("o", bytes(SIZE)) for _ in range(20)]
    for response in running:
        assert store.begin(response)
    assert sum(len(response.input) for response in running) <= 3 * SIZE
    assert not store.complete(running[0], "a", BODY)
    assert store.complete(running[-1], "b", BODY)


def test_the_number_is_bounded() -> None:
    store = new_store(max_responses=3)
    for id in "abcde":
        add(store, id)
    assert kept(store, "abcde") == "cde"


def test_old_ones_are_dropped() -> None:
    store = new_store(max_age=100.0)
    clock: Clock = store._clock  # type: ignore[assignment]
    first = add(store, "a")
    add(store, "b")
    clock.now += 60
    add(store, "c", first)
    clock.now += 60
    assert kept(store, "abc") == "ac"
    assert store.num_bytes == 2 * SIZE


def test_what_continues_a_response_that_was_dropped_since_is_not_stored() -> None:
    store = new_store(max_age=100.0)
    clock: Clock = store._clock  # type: ignore[assignment]
    first = add(store, "a")
    clock.now += 200
    assert store.find("o", "a") is None
    assert not store.begin(StoredResponse("o", b"[1]", first))
    assert (store.num_responses, store.num_bytes) == (0, 0)


@pytest.mark.parametrize("bounds", [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0)])
def test_a_bound_of_zero_switches_it_off(bounds: tuple[int, int, float]) -> None:
    assert not ResponseStore(*bounds).is_on
    assert ResponseStore(1, 1, 1.0).is_on


def test_a_deleted_response_is_kept_for_what_continues_it() -> None:
    store = new_store()
    one = add(store, "a")
    two = add(store, "b", one)
    three = add(store, "c", two)
    store.delete(two)
    assert kept(store, "abc") == "ac"
    assert [turn.id for turn in three.turns()] == ["c", "b", "a"]
    assert store.num_responses == 3
    store.delete(three)
    assert (store.num_responses, store.num_bytes) == (1, SIZE)
    store.delete(one)
    assert (store.num_responses, store.num_bytes) == (0, 0)


def test_items_are_found_by_the_id_of_their_answer() -> None:
    store = new_store()
    add(store, "b", add(store, "a"))
    for id in "ab":
        assert store.find_items("o", id) == {"msg_1": b'{"id":"msg_1","type":"message"}'}
    assert store.find_items("p", "a") == store.find_items("o", "c") == {}


STEP = st.tuples(
    st.sampled_from(["add", "add", "continue", "begin", "abandon", "complete", "delete", "find"]),
    st.integers(0, 30),
    st.sampled_from("op"),
)


@given(steps=st.lists(STEP, max_size=60), max_responses=st.integers(1, 8))
def test_any_order_of_calls_keeps_the_rules(
    steps: list[tuple[str, int, str]], max_responses: int
) -> None:
    """What is found has all its earlier turns, counts add up, and the bounds hold."""
    store = new_store(6, max_responses, max_age=40.0)
    begun: list[StoredResponse] = []
    ids: list[tuple[str, str]] = []
    for step, number, owner in steps:
        known = ids[number % len(ids)] if ids else ("o", "none")
        if step in ("add", "continue", "begin"):
            previous = store.find(*known) if step == "continue" else None
            response = StoredResponse(known[0] if previous else owner, bytes(number), previous)
            if store.begin(response) and step == "begin":
                begun.append(response)
            elif step != "begin":
                ids.append((response.owner, f"{len(ids)}"))
                store.complete(response, ids[-1][1], BODY)
        elif step == "delete":
            if (found := store.find(*known)) is not None:
                store.delete(found)
        elif step == "find":
            store.find(*known)
        elif begun:
            response = begun.pop()
            if step == "abandon":
                store.abandon(response)
            else:
                ids.append((response.owner, f"{len(ids)}"))
                store.complete(response, ids[-1][1], BODY)
        alive = {turn for place in ids if (one := store.find(*place)) for turn in one.turns()}
        alive |= {turn for one in begun if one in store._kept[one.owner] for turn in one.turns()}
        assert store.num_responses == len(alive) <= max_responses
        assert store.num_bytes == sum(turn.num_bytes for turn in alive) <= 6 * SIZE
