"""Which replica gets a prompt."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonechat_server.ray_serve.prefixes import (
    HASH_SIZE,
    MAX_HASHES,
    TOKENS_PER_HASH,
    PrefixTable,
    prompt_hashes,
    split_hashes,
)


def hashes_of(*token_ids: int, salt: str = "") -> list[bytes]:
    return split_hashes(prompt_hashes(token_ids, salt))


@given(st.lists(st.integers(0, 3), max_size=80), st.lists(st.integers(0, 3), max_size=80))
def test_hashes_are_equal_just_as_far_as_whole_pieces_are(
    left: list[int], right: list[int]
) -> None:
    for number, (one, other) in enumerate(zip(hashes_of(*left), hashes_of(*right)), 1):
        end = number * TOKENS_PER_HASH
        assert (one == other) == (left[:end] == right[:end])


def test_a_prompt_has_a_hash_for_each_whole_piece_up_to_a_bound() -> None:
    assert prompt_hashes(range(TOKENS_PER_HASH - 1)) == b""
    assert len(prompt_hashes(range(3 * TOKENS_PER_HASH + 5))) == 3 * HASH_SIZE
    assert len(prompt_hashes([1] * (TOKENS_PER_HASH * MAX_HASHES * 2))) == MAX_HASHES * HASH_SIZE


def test_another_salt_gives_other_hashes() -> None:
    assert not set(hashes_of(*range(64))) & set(hashes_of(*range(64), salt="key"))


def test_a_conversation_goes_on_where_it_began_although_another_replica_has_less_to_do() -> None:
    table = PrefixTable()
    table.note(hashes_of(*range(64)), "b")
    following = hashes_of(*range(96))
    assert table.rank(following, {"a": 0, "b": 3, "c": 1}) == ["b", "a", "c"]


def test_a_hot_prefix_does_not_overload_its_replica() -> None:
    table = PrefixTable(load_factor=1.5, load_slack=2)
    hashes = hashes_of(*range(64))
    table.note(hashes, "b")
    loads = {"a": 2, "b": 5, "c": 2}  # the limit is 1.5 times 3, rounded up, and 2 more: 7
    assert table.rank(hashes, loads)[0] == "b"
    assert table.rank(hashes, {"a": 0, "b": 4, "c": 0})[0] in ("a", "c")


def test_a_common_beginning_is_only_the_tie_break() -> None:
    """Many conversations begin with the same system message."""
    table = PrefixTable()
    table.note(hashes_of(*range(64)), "b")
    other = hashes_of(*range(32), *range(1000, 1100))
    assert table.rank(other, {"a": 0, "b": 1, "c": 2}) == ["a", "b", "c"]
    assert table.rank(other, {"a": 1, "b": 1, "c": 1})[0] == "b"


def test_what_replicas_report_counts_like_what_the_router_has_seen() -> None:
    """After another ingress has sent them the first turn, or after this one was replaced."""
    first, following = hashes_of(*range(64)), hashes_of(*range(96))
    loads = {"a": 0, "b": 2, "c": 0}
    table = PrefixTable()
    assert table.rank(following, loads)[0] != "b"
    table.note_report([first[-1]], "b")
    assert table.rank(following, loads)[0] == "b"


def test_a_report_does_not_change_what_the_router_knows_itself() -> None:
    table, hashes = PrefixTable(), hashes_of(*range(64))
    table.note(hashes, "a")
    table.note_report(hashes, "b")
    assert table.rank(hashes, {"a": 1, "b": 0})[0] == "a"


def test_a_replica_that_is_gone_gets_nothing() -> None:
    table = PrefixTable()
    table.note(hashes_of(*range(64)), "gone")
    assert sorted(table.rank(hashes_of(*range(64)), {"a": 0, "b": 0})) == ["a", "b"]


def test_new_prompts_spread_over_idle_replicas_and_all_routers_agree() -> None:
    names = ["a", "b", "c", "d"]
    firsts = [
        PrefixTable().rank(hashes_of(*range(start, start + 64)), dict.fromkeys(names, 0))[0]
        for start in range(100)
    ]
    again = [
        PrefixTable().rank(hashes_of(*range(start, start + 64)), dict.fromkeys(names[::-1], 0))
        for start in range(100)
    ]
    assert firsts == [ranked[0] for ranked in again]
    assert min(firsts.count(name) for name in names) > 10


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=40))
def test_the_table_is_bounded_and_forgets_the_oldest_first(prompts: list[tuple[int, int]]) -> None:
    table, order = PrefixTable(max_entries=20), dict[bytes, str]()
    for start, num_pieces in prompts:
        hashes = hashes_of(*range(start, start + num_pieces * TOKENS_PER_HASH))
        name = str(start % 3)
        table.note(hashes, name)
        for content in reversed(hashes):
            order.pop(content, None)
            order[content] = name
    assert len(table) == min(20, len(order))
    for content, name in list(order.items())[-20:]:
        loads = {"0": 0, "1": 0, "2": 0}
        assert table.rank([content], loads)[0] == name


@pytest.mark.parametrize("num_hashes", [0, 1])
def test_equal_replicas_are_ordered_by_a_stable_hash(num_hashes: int) -> None:
    hashes = hashes_of(*range(16))[:num_hashes]
    expected = sorted(
        "abc", key=lambda name: hashlib.blake2b(name.encode() + b"".join(hashes), digest_size=8)
        .digest()
    )  # fmt: skip
    assert PrefixTable().rank(hashes, {"a": 0, "b": 0, "c": 0}) == expected
