"""Blocks are found by their content, until they are evicted."""

from stonechat_models.engine.prefix_cache import PrefixCache, block_hash, root_hash


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


def test_the_first_block_of_a_content_is_kept() -> None:
    cache = PrefixCache()
    content = block_hash(root_hash(""), [1, 2])
    assert cache.find(content) is None
    assert cache.insert(content, 7)
    assert not cache.insert(content, 8)
    assert cache.find(content) == 7
    assert cache.holds(7)
    assert not cache.holds(8)
    assert len(cache) == 1


def test_an_evicted_block_is_not_found_and_its_content_may_come_again() -> None:
    cache = PrefixCache()
    contents = [block_hash(root_hash(""), [number]) for number in range(3)]
    for block_id, content in enumerate(contents):
        cache.insert(content, block_id)
    cache.evict(1)
    cache.evict(1)
    cache.evict(99)
    assert [cache.find(content) for content in contents] == [0, None, 2]
    assert cache.insert(contents[1], 5)
    assert cache.find(contents[1]) == 5


def test_a_cleared_cache_is_empty() -> None:
    cache = PrefixCache()
    content = block_hash(root_hash(""), [1])
    cache.insert(content, 3)
    cache.clear()
    assert len(cache) == 0
    assert cache.find(content) is None
    assert not cache.holds(3)
    assert cache.insert(content, 3)
