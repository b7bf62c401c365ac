"""Reference counts, the order of reuse, and blocks that are found by their content."""

import pytest

from stonechat_models.engine.cache.blocks import BlockPool
from stonechat_models.engine.sequence import block_hash, root_hash


def test_a_shared_block_is_free_only_after_its_last_reference():
    pool = BlockPool(2)
    block = pool.allocate(1)[0]
    pool.share([block])
    pool.release([block])
    assert pool.num_free == 1
    pool.release([block])
    assert pool.num_free == 2


def test_blocks_that_cache_nothing_are_reused_first_then_the_oldest():
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    for block in blocks[:3]:
        pool.insert(bytes([block]), block)
    pool.release([blocks[1]])
    pool.release([blocks[0]])
    pool.release([blocks[3]])
    assert pool.allocate(3) == [blocks[3], blocks[1], blocks[0]]
    assert pool.find(bytes([blocks[1]])) is None
    assert pool.find(bytes([blocks[2]])) == blocks[2]


def test_the_end_of_a_prefix_is_reused_before_its_start():
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block in blocks:
        pool.insert(bytes([block]), block)
    pool.release(blocks)
    assert pool.allocate(1)[0] == blocks[2]


def test_sharing_a_free_block_takes_it_off_the_free_list():
    pool = BlockPool(1)
    block = pool.allocate(1)[0]
    pool.insert(b"x", block)
    pool.release([block])
    assert pool.num_free_among([block]) == 1
    pool.share([block])
    assert pool.num_free == pool.num_free_among([block]) == 0
    pool.check_integrity([[block]])


def test_integrity_check_sees_a_leak_and_a_double_release():
    pool = BlockPool(2)
    block = pool.allocate(1)[0]
    pool.check_integrity([[block]])
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_integrity([])
    pool.release([block])
    with pytest.raises(AssertionError, match="twice"):
        pool.release([block])


def test_hashes_depend_on_parent_tokens_and_salt():
    root = root_hash("")
    assert block_hash(root, [1, 2]) == block_hash(root, [1, 2])
    assert block_hash(root, [1, 2]) != block_hash(root, [2, 1])
    assert block_hash(block_hash(root, [0]), [1, 2]) != block_hash(root, [1, 2])
    assert root_hash("a") != root


def test_a_hash_depends_on_all_tokens_before_it_and_on_the_salt() -> None:
    first = block_hash(root_hash(""), [1, 2])
    assert first == block_hash(root_hash(""), (1, 2))
    others = {
        block_hash(root_hash(""), [2, 1]),
        block_hash(root_hash(""), [1, 2, 3]),
        block_hash(root_hash("x"), [1, 2]),
        block_hash(first, [1, 2]),
    }
    assert len(others | {first}) == 5
    assert all(len(content) == 16 for content in others)


def test_the_first_block_of_a_content_is_found() -> None:
    pool = BlockPool(3)
    first, second, _ = pool.allocate(3)
    content = block_hash(root_hash(""), [1, 2])
    assert pool.find(content) is None
    assert pool.insert(content, first)
    assert not pool.insert(content, second)
    assert pool.find(content) == first
    pool.release([second])
    assert pool.allocate(1) == [second]
    assert pool.find(content) == first


def test_a_block_that_is_reused_is_not_found_and_its_content_may_come_again() -> None:
    pool = BlockPool(3)
    contents = [block_hash(root_hash(""), [number]) for number in range(3)]
    for block_id, content in zip(pool.allocate(3), contents, strict=True):
        pool.insert(content, block_id)
    pool.release([1])
    assert [pool.find(content) for content in contents] == [0, 1, 2]
    assert pool.allocate(1) == [1]
    assert [pool.find(content) for content in contents] == [0, None, 2]
    assert pool.insert(contents[1], 1)
    assert pool.find(contents[1]) == 1
