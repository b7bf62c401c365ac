"""Recurrent layers over packed tokens: kernels against each sequence by itself, in float64.

The references compute one token after the other, from the formulas of the papers: gated delta rule
(arXiv 2412.06464) and Mamba 2 (arXiv 2405.21060).
"""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton")

from stonechat_models.backends.transformers.fused import mixers
from stonechat_models.backends.transformers.slot_states import SlotStates, StepSequences
from tests.models.backends.transformers.fused.test_mixers import (
    DEVICE,
    delta_layer,
    draw,
    mamba_layer,
    near,
)

LENGTHS = (1, 64, 65, 130, 5)
"""The last one is padding."""
SLOTS = (3, 0, 6, 2, 7)
NUM_SLOTS = 7
PAST = (9, 0, 4, 30, 0)
"""Tokens of each sequence before the step."""
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Sums of many logarithms of decays lose some digits."""
STARTS = [0, *accumulate(LENGTHS)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def sequences():
    def numbers(values):
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    owners = [i for i, length in enumerate(LENGTHS) for _ in range(length)]
    contexts = [past + length for past, length in zip(PAST, LENGTHS, strict=True)]
    contexts[-1] = 0
    return StepSequences(numbers(SLOTS).long(), numbers(STARTS), numbers(contexts), numbers(owners))


def parts(states):
    """Each sequence's slot, tokens, and its state in float64 before the step."""
    for i, slot in enumerate(SLOTS[:-1]):
        state = states[slot].double()
        yield slot, slice(STARTS[i], STARTS[i + 1]), state if PAST[i] else state * 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("taps", "gates"), [(4, False), (3, True)])
def test_convolutions(taps, gates, dtype):
    channels = 140  # more than one program
    conv = nn.Conv1d(channels, channels, taps, groups=channels).to(DEVICE, dtype)
    x = draw(STARTS[-1], channels * (3 if gates else 1), dtype=dtype)
    pool = draw(NUM_SLOTS + 1, channels, taps, dtype=dtype)
    before = pool.clone()
    states = SlotStates(pool, None, sequences())
    actual = mixers.convolved(x, conv, states, activates=not gates, gates=gates)
    for slot, tokens, state in parts(before):
        rows = x[tokens].double()
        if gates:
            first, second, rows = rows.chunk(3, dim=-1)
            rows = (first * rows).to(dtype).double()
        window = torch.cat([state, rows.T], dim=-1)
        near(window[:, -taps:], pool[slot], dtype, TOLERANCE)
        expected = F.conv1d(
            window[:, 1:], conv.weight.double(), conv.bias.double(), groups=channels
        )
        expected = expected.T * second if gates else F.silu(expected.T)
        near(expected, actual[tokens], dtype, TOLERANCE)
    assert torch.equal(pool[[1, 4, 5, 7]], before[[1, 4, 5, 7]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gated_delta_rule(dtype):
    layer = delta_layer(dtype, per_key=2)
    channels, heads, num_keys, key, value, ends = layer.sizes
    x = draw(STARTS[-1], ends[2] + heads, dtype=dtype)
    x[70:90] = x[70]  # keys that repeat, written with all strength
    x[70:90, ends[1] : ends[2]] = 9.0
    conv = draw(NUM_SLOTS + 1, channels, 4, dtype=dtype)
    pool = draw(NUM_SLOTS + 1, heads, key, value)
    before = pool.clone()
    mixed = mixers.convolved(
        x[:, :channels],
        layer.conv1d,
        SlotStates(conv.clone(), None, sequences()),
        activates=True,
    ).double()
    actual = mixers.SlotDeltaNet(layer).mix(x, SlotStates(conv, pool, sequences()))
    z, b, a = (part.double() for part in x[:, ends[0] :].split([heads * value, heads, heads], -1))
    queries, keys, values = mixed.split([num_keys * key, num_keys * key, heads * value], dim=-1)
    queries, keys = (t.view(-1, num_keys, key).repeat_interleave(2, 1) for t in (queries, keys))
    queries, keys = (t / (t.square().sum(-1, True) + 1e-6).sqrt() for t in (queries, keys))
    times = F.softplus(a + layer.dt_bias.double())
    decays = (-layer.A_log.double().exp() * times).exp()
    strengths = torch.sigmoid(b)
    for slot, tokens, state in parts(before):
        results = []
        for t in range(tokens.start, tokens.stop):
            state = state * decays[t, :, None, None]
            v = values[t].view(heads, value)
            v = (v - torch.einsum("hk,hkv->hv", keys[t], state)) * strengths[t, :, None]
            state = state + keys[t, :, :, None] * v[:, None, :]
            results.append(torch.einsum("hk,hkv->hv", queries[t] / key**0.5, state))
        result = torch.stack(results)
        result = result / (result.square().mean(-1, True) + 1e-5).sqrt()
        expected = result * layer.norm.weight.double() * F.silu(z[tokens].view(-1, heads, value))
        near(state, pool[slot], dtype, TOLERANCE)
        near(expected.flatten(1), actual[tokens], dtype, TOLERANCE)
    assert torch.equal(pool[[1, 4, 5, 7]], before[[1, 4, 5, 7]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_state_space_of_mamba(dtype):
    layer = mamba_layer(dtype, time_step_limit=(0.01, 5.0))
    heads, size = layer.num_heads, layer.head_dim
    groups, state_size = layer.n_groups, layer.ssm_state_size
    inner, channels = layer.intermediate_size, layer.conv_dim
    x = draw(STARTS[-1], inner + channels + heads, dtype=dtype)
    x[0, -1], x[2, -2] = 30.0, -12.0  # time steps beyond the limits
    conv = draw(NUM_SLOTS + 1, channels, 4, dtype=dtype)
    pool = draw(NUM_SLOTS + 1, heads, size, state_size)
    before = pool.clone()
    gate, xbc, dt = x.split([inner, channels, heads], dim=-1)
    mixed = mixers.convolved(
        xbc, layer.conv1d, SlotStates(conv.clone(), None, sequences()), activates=True
    ).double()
    actual = mixers.SlotMamba(layer).mix(x, SlotStates(conv, pool, sequences()))
    inputs, b, c = mixed.split([inner, groups * state_size, groups * state_size], dim=-1)
    b, c = (t.view(-1, groups, state_size).repeat_interleave(heads // groups, 1) for t in (b, c))
    times = F.softplus(dt.double() + layer.dt_bias.double()).clamp(0.01, 5.0)
    decays = (-layer.A_log.double().exp() * times).exp()
    for slot, tokens, state in parts(before):
        results = []
        for t in range(tokens.start, tokens.stop):
            value = inputs[t].view(heads, size)
            written = (times[t, :, None] * b[t])[:, None, :] * value[:, :, None]
            state = state * decays[t, :, None, None] + written
            read = torch.einsum("hvs,hs->hv", state, c[t])
            results.append(read + layer.D.double()[:, None] * value)
        gated = torch.stack(results).flatten(1) * F.silu(gate[tokens].double())
        gated = gated.view(len(gated), 2, -1)
        normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        near(state, pool[slot], dtype, TOLERANCE)
        near(normed.flatten(1) * layer.norm.weight.double(), actual[tokens], dtype, TOLERANCE)
    assert torch.equal(pool[[1, 4, 5, 7]], before[[1, 4, 5, 7]])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["delta", "mamba"])
def test_numbers_that_are_not_finite_stay_in_their_sequence(kind, number):
    """Its neighbours in a tile, before and after it, get the same bits."""
    layer = delta_layer(torch.float32) if kind == "delta" else mamba_layer(torch.float32)
    if kind == "delta":
        channels, heads, _, key, value, ends = layer.sizes
        width, shape, mixer = ends[2] + heads, (heads, key, value), mixers.SlotDeltaNet(layer)
    else:
        channels, width = layer.conv_dim, layer.intermediate_size + layer.conv_dim + layer.num_heads
        shape = (layer.num_heads, layer.head_dim, layer.ssm_state_size)
        mixer = mixers.SlotMamba(layer)
    x = draw(STARTS[-1], width)
    conv, pool = draw(NUM_SLOTS + 1, channels, 4), draw(NUM_SLOTS + 1, *shape)
    results = []
    for tokens in ([], [STARTS[2] - 1, STARTS[4] - 1]):
        changed = x.clone()
        changed[tokens] = number
        states = SlotStates(conv.clone(), pool.clone(), sequences())
        results.append((mixer.mix(changed, states), states.recurrent))
    (expected, expected_states), (actual, actual_states) = results
    for i, slot in enumerate(SLOTS[:-1]):
        tokens = slice(STARTS[i], STARTS[i + 1])
        if i in (1, 3):
            assert not actual[tokens.stop - 1].isfinite().any()
            assert not actual_states[slot].isfinite().all()
        else:
            assert torch.equal(actual[tokens], expected[tokens])
            assert torch.equal(actual_states[slot], expected_states[slot])
