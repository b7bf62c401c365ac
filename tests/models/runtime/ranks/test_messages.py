"""A step message has the whole batch."""

from dataclasses import fields
from multiprocessing import Pipe

import pytest
import torch

from stonechat_models.backends.transformers.verify import random_batch
from stonechat_models.runtime.ipc import Allocate, CopyBlocks, CountFree, FramePipe
from stonechat_models.runtime.ranks.messages import read_step, step_message


@pytest.mark.parametrize("lengths", [[(1, 1)], [(7, 7), (1, 30), (3, 17)], [(1, 5)] * 40])
def test_a_batch_arrives_as_it_was_sent(lengths):
    batch = random_batch(lengths, 4, vocab_size=1000)
    batch.logits_index = torch.tensor([0, batch.num_tokens - 1])
    batch.state_index = None  # models with states are not split
    ours, theirs = (FramePipe(end) for end in Pipe())
    ours.send(step_message(batch))
    received = read_step(theirs.receive())
    for field in fields(batch):
        sent, read = getattr(batch, field.name), getattr(received, field.name)
        if isinstance(sent, torch.Tensor):
            assert sent.dtype == read.dtype, field.name
            assert torch.equal(sent, read), field.name
        elif field.name.endswith("start_list") or field.name == "context_lens_list":
            assert sent == read
    assert received.num_tokens == batch.num_tokens


def test_other_messages_to_ranks_arrive():
    ours, theirs = (FramePipe(end) for end in Pipe())
    for message in (CountFree(), Allocate(7, 16)):
        ours.send(message)
        assert theirs.receive() == message
    ours.send(CopyBlocks([(1, 2), (3, 4)]))
    assert [tuple(pair) for pair in theirs.receive().pairs] == [(1, 2), (3, 4)]
