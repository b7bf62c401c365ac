"""On an accelerator, sampling queues its work and does not wait, unless logits are edited.

Tensors on the meta device have a shape but no values. An operation that needs a value on the host
would wait for a real device. On the meta device it raises.
"""

import pytest
import torch

from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SamplingState
from stonechat_models.types import SamplingParams

META = torch.device("meta")
VOCAB_SIZE = 300


def state(**params):
    return SamplingState(SamplingParams(**params), 7, 0, [1, 2, 3])


ROWS = {
    "greedy": lambda: state(temperature=0.0),
    "plain": state,
    "cooler": lambda: state(temperature=0.7),
    "top_p": lambda: state(top_p=0.9),
    "top_k": lambda: state(top_k=20, min_p=0.1, top_p=0.5),
    "logprobs": lambda: state(temperature=0.0, top_logprobs=20),
}


@pytest.mark.parametrize("kind", ROWS)
def test_no_kind_of_row_waits_for_the_device(kind):
    states = [ROWS[kind]() for _ in range(3)]
    sampling = Sampler(VOCAB_SIZE, META).launch(torch.empty(3, VOCAB_SIZE, device=META), states)
    assert sampling.tokens.is_meta
    assert sampling.tokens.shape == (3,)


def test_a_batch_of_all_kinds_does_not_wait_either():
    states = [make() for make in ROWS.values()]
    rows = torch.empty(len(states), VOCAB_SIZE, device=META, dtype=torch.bfloat16)
    sampling = Sampler(VOCAB_SIZE, META).launch(rows, states)
    assert sampling.tokens.shape == (len(ROWS),)


def test_reading_would_wait_and_so_raises():
    sampling = Sampler(VOCAB_SIZE, META).launch(
        torch.empty(1, VOCAB_SIZE, device=META), [ROWS["plain"]()]
    )
    with pytest.raises(RuntimeError):
        sampling.read()
