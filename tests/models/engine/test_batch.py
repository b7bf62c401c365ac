"""The packed tensors of a step."""

import random
from array import array
from types import SimpleNamespace

import pytest
import torch

from stonechat_models.engine import batch as batches
from stonechat_models.engine.placement import OnHost
from stonechat_models.engine.scheduler import Scheduler
from stonechat_models.engine.sequence import Scheduled
from stonechat_models.hardware import transfers
from tests.models.engine.test_scheduler import make_request


def scheduled(lengths):
    scheduler = Scheduler(num_blocks=64, block_size=4, max_batch_tokens=64, max_num_seqs=8)
    for i, length in enumerate(lengths):
        scheduler.add(make_request(f"r{i}", [10 + i] * length, 1, 5))
    return scheduler.schedule().scheduled


def tensors_of(batch):
    return {
        "token_ids": (batch.token_ids, torch.int64),
        "positions": (batch.positions, torch.int64),
        "slot_mapping": (batch.slot_mapping, torch.int64),
        "logits_index": (batch.logits_index, torch.int64),
        "query_start": (batch.query_start, torch.int32),
        "context_lens": (batch.context_lens, torch.int32),
        "block_table": (batch.block_table, torch.int32),
    }


def test_all_numbers_of_a_step_go_to_a_device_in_one_copy(monkeypatch):
    copies = []

    def to_device(numbers, device):
        copies.append(numbers)
        return torch.from_numpy(numbers.copy())

    monkeypatch.setattr(transfers, "to_device", to_device)
    items = scheduled([3, 9, 1])
    expected = batches.build_batch(items, 4, torch.device("cpu"))
    actual = batches.build_batch(items, 4, SimpleNamespace(type="other"))
    assert len(copies) == 1
    for name, (tensor, _) in tensors_of(actual).items():
        assert torch.equal(tensor, tensors_of(expected)[name][0]), name
    assert actual.token_ids.tolist() == [10] * 3 + [11] * 9 + [12]
    assert actual.query_start.tolist() == [0, 3, 12, 13]
    assert actual.context_lens.tolist() == [3, 9, 1]
    assert actual.logits_index.tolist() == [2, 11, 12]


def test_tensors_start_at_multiples_of_16_bytes():
    """Triton compiles a kernel again for a pointer with another alignment."""
    for lengths in ([3], [3, 9, 1], [1, 1, 1, 1, 1]):
        batch = batches.build_batch(scheduled(lengths), 4, torch.device("cpu"))
        for name, (tensor, dtype) in tensors_of(batch).items():
            assert tensor.dtype == dtype, name
            assert (tensor.data_ptr() - batch.token_ids.data_ptr()) % 16 == 0, name


def random_item(rng, index, block_size):
    """An item of any kind: a part of a prompt, a decode step, a draft, or a placeholder."""
    length = rng.randint(1, 40)
    group = make_request(f"r{index}", [rng.randrange(1000) for _ in range(length)])
    sequence = group.sequences[0]
    start = rng.randrange(length)
    item = Scheduled(sequence, start, rng.randint(1, length - start), reaches_end=False)
    if rng.random() < 0.3:  # the token after the known ones is a placeholder
        earlier = Scheduled(sequence, 0, length, reaches_end=True, row=rng.randrange(8))
        item = Scheduled(sequence, length, 1, reaches_end=True, depends_on=earlier)
    elif start + item.num_tokens == length:
        item.reaches_end = True
        item.draft = tuple(rng.randrange(1000) for _ in range(rng.randrange(4)))
    if item.start and rng.random() < 0.3:
        item.num_again = rng.randint(1, item.start)
    item.num_prompt_rows = rng.randrange(item.num_tokens)
    num_blocks = -(-item.context_len // block_size) + rng.randrange(3)  # it may have more blocks
    sequence.block_table.extend(rng.sample(range(1, 500), num_blocks))
    return item


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_has_each_number_of_its_items(seed):
    rng, block_size = random.Random(seed), 4
    items = [random_item(rng, i, block_size) for i in range(rng.randint(1, 8))]
    sampled_ids = torch.arange(2000, 2008)
    batch = batches.build_batch(items, block_size, torch.device("cpu"), sampled_ids)
    token_ids, positions, slots, rows, ends = [], [], [], [], [0]
    for item, blocks in zip(items, batch.block_table.tolist(), strict=True):
        sequence = item.sequence
        known = [*sequence.token_ids, *item.draft]
        for position in range(item.start - item.num_again, item.context_len):
            is_known = position < len(known)
            token_ids.append(known[position] if is_known else 2000 + item.depends_on.row)
            positions.append(position)
            block = sequence.block_table[position // block_size]
            slots.append(block * block_size + position % block_size)
        num_rows = item.num_prompt_rows + item.num_rows
        rows += range(len(token_ids) - num_rows, len(token_ids))
        ends.append(len(token_ids))
        num_blocks = -(-item.context_len // block_size)
        padding = [0] * (len(blocks) - num_blocks)
        assert blocks == [*sequence.block_table[:num_blocks], *padding]
    assert batch.token_ids.tolist() == token_ids
    assert batch.positions.tolist() == positions
    assert batch.slot_mapping.tolist() == slots
    assert batch.logits_index.tolist() == rows
    assert batch.query_start.tolist() == batch.query_start_list == ends
    contexts = [item.context_len for item in items]
    assert batch.context_lens.tolist() == batch.context_lens_list == contexts
    assert batch.num_rows_list == [item.num_prompt_rows + item.num_rows for item in items]
    on_host = OnHost().batch(items, block_size, array("q", range(2000, 2008)))
    for name in ("token_ids", "positions", "slot_mapping", "query_start", "logits_index"):
        assert getattr(on_host, name).tolist() == getattr(batch, name).tolist(), name
    assert on_host.block_table.tolist() == batch.block_table.flatten().tolist()
    assert on_host.state_slots.tolist() == batch.state_slots


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_a_decode_step_gets_the_tokens_that_the_host_does_not_know(order):
    earlier = scheduled([3, 9, 1])
    items = []
    for item, row in zip(earlier, order, strict=True):
        item.row = row
        item.sequence.block_table.extend([60, 61])
        items.append(Scheduled(item.sequence, item.num_tokens, 1, True, depends_on=item))
    batch = batches.build_batch(items, 4, torch.device("cpu"), torch.tensor([50, 51, 52]))
    assert batch.token_ids.tolist() == [50 + row for row in order]
    assert batch.positions.tolist() == [3, 9, 1]
    assert batch.logits_index.tolist() == [0, 1, 2]


def test_a_step_of_single_tokens_may_need_fewer_rows_of_logits():
    items = scheduled([1, 5, 1])
    items[1].num_tokens, items[1].reaches_end = 1, False
    batch = batches.build_batch(items, 4, torch.device("cpu"))
    assert batch.token_ids.tolist() == [10, 11, 12]
    assert batch.logits_index.tolist() == [0, 2]
