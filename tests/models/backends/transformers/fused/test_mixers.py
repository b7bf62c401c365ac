"""Recurrent layers on the states in the pool: kernels in float64, layers beside transformers'.

The references compute one row after the other, from the formulas of the papers: gated delta rule
(arXiv 2412.06464) and Mamba 2 (arXiv 2405.21060).
"""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.cache_utils import Cache, LinearAttentionLayer

pytest.importorskip("triton")

from stonechat_models.backends.transformers import step_check
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.cache_argument import cache_argument
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.parity_steps import last_tokens, parity_sequences
from stonechat_models.backends.transformers.fused import mixers
from stonechat_models.backends.transformers.fused.hybrid_layer import FusedHybridLayer
from stonechat_models.backends.transformers.fused.recognise_mixers import MIXERS, fused_mixer
from stonechat_models.backends.transformers.fused.replace import fuse_hybrid_attention, fuse_modules
from stonechat_models.backends.transformers.lora.install import _fused_layers, _place
from stonechat_models.backends.transformers.slot_states import SlotMixer, SlotStates, StepSequences
from tests.models.backends.transformers.cuda.test_graphs import RerunCapturer
from tests.models.device_lengths import DeviceLengths
from tests.models.engine.test_overlap import LIMITS, assert_same, run_workload, workload
from tests.models.engines import CPU, generate_all, greedy, make_engine, reference_greedy
from tests.models.launches import counted_launches
from tests.models.tiny_models import tiny_model
from tests.nightly import nightly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_interpreter = pytest.mark.skipif(DEVICE == "cuda", reason="runs whole models in float32")
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
SLOTS = (2, 4, 0)
"""Of two sequences and one row of padding: slot 4 is the last."""
PADDING = 4
FAMILIES = ["qwen3_5_text", "lfm2", "granitemoehybrid", "mamba2"]
MORE_FAMILIES = ["qwen3_next", "qwen3_5_moe_text", "bamba", "nemotron_h"]
ALL_FAMILIES = [*FAMILIES, *MORE_FAMILIES]
ATTENTION_FAMILIES = ["lfm2", "qwen3_5_text", "qwen3_next", "qwen3_5_moe_text"]
"""Those whose attention is fused too."""


def draw(*shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(*shape) * scale).to(DEVICE, dtype)


def place(states):
    """A token of each sequence: the second of three is padding."""
    slots = torch.tensor([SLOTS[0], PADDING, SLOTS[2]], device=DEVICE)
    starts = torch.arange(4, dtype=torch.int32, device=DEVICE)
    return StepSequences(slots, starts, starts[1:] + 7, None)


def near(expected, actual, dtype, tolerances=TOLERANCE):
    expected = expected.detach()
    error = (expected - actual.double()).abs().max() / expected.abs().max()
    assert float(error) <= tolerances[dtype]


def silu(x):
    return x * torch.sigmoid(x)


def conv_reference(window, weight, bias, activates):
    """One row: the last inputs [C, TAPS] with the new one."""
    result = (window * weight).sum(-1) + (0 if bias is None else bias)
    return silu(result) if activates else result


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("taps", "has_bias", "activates"), [(4, True, True), (3, False, True), (4, False, False)]
)
def test_convolutions(taps, has_bias, activates, dtype):
    channels = 140  # more than one program
    conv = nn.Conv1d(channels, channels, taps, groups=channels, bias=has_bias).to(DEVICE, dtype)
    pool, wide = draw(5, channels, taps, dtype=dtype), draw(3, channels + 20, dtype=dtype)
    before, x = pool.clone(), wide[:, 20:]
    states = SlotStates(pool, None, place(pool))
    actual = mixers.convolved(x, conv, states, activates=activates)
    bias = conv.bias.double() if has_bias else None
    for row, slot in ((0, SLOTS[0]), (2, SLOTS[2])):
        window = torch.cat([before[slot, :, 1:], x[row, :, None]], dim=-1)
        assert torch.equal(pool[slot], window)
        weight = conv.weight[:, 0].double()
        near(conv_reference(window.double(), weight, bias, activates), actual[row], dtype)
    assert torch.equal(pool[[1, 3, 4]], before[[1, 3, 4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_convolutions(dtype):
    channels, taps = 24, 3
    conv = nn.Conv1d(channels, channels, taps, groups=channels).to(DEVICE, dtype)
    pool, x = draw(5, channels, taps, dtype=dtype), draw(3, 3 * channels, dtype=dtype)
    before = pool.double()
    states = SlotStates(pool, None, place(pool))
    actual = mixers.convolved(x, conv, states, activates=False, gates=True)
    first, second, inputs = x.double().chunk(3, dim=-1)
    for row, slot in ((0, SLOTS[0]), (2, SLOTS[2])):
        window = torch.cat([before[slot, :, 1:], (first * inputs)[row, :, None]], dim=-1)
        near(window, pool[slot], dtype)
        weight, bias = conv.weight[:, 0].double(), conv.bias.double()
        expected = second[row] * conv_reference(window, weight, bias, activates=False)
        near(expected, actual[row], dtype)


def test_channels_in_groups_of_keys():
    """As Qwen3-Next's projection orders them: a query, a key, values, gates, for each key."""
    count, key, value = 3, 4, 10
    size = 2 * key + 2 * value
    channels = count * (2 * key + value)
    x = draw(3, count * size)
    parts = x.view(3, count, size).split([key, key, value, value], dim=-1)
    in_order = torch.cat([part.flatten(1) for part in parts[:3]], dim=-1)
    conv = nn.Conv1d(channels, channels, 4, groups=channels).to(DEVICE)
    pool = draw(5, channels, 4)
    results = []
    for inputs, groups in (
        (in_order, mixers.IN_ORDER),
        (x, mixers.Groups(count, key, value, size)),
    ):
        states = SlotStates(pool.clone(), None, place(pool))
        output = mixers.convolved(inputs, conv, states, activates=True, groups=groups)
        results.append((output, states.conv))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def delta_layer(dtype, *, num_keys=2, per_key=3, key=6, value=10):
    """A layer whose projections return their input's parts, and whose output is not projected."""
    heads = num_keys * per_key
    channels = 2 * num_keys * key + heads * value
    ends = [channels, channels + heads * value, channels + heads * value + heads]
    conv = nn.Conv1d(channels, channels, 4, groups=channels, bias=False).to(DEVICE, dtype)
    norm = SimpleNamespace(weight=draw(value, dtype=dtype), variance_epsilon=1e-5)
    return SimpleNamespace(
        layer_idx=0,
        forward=lambda cache: None,
        num_v_heads=heads,
        num_k_heads=num_keys,
        head_k_dim=key,
        head_v_dim=value,
        conv1d=conv,
        A_log=draw(heads, dtype=dtype, scale=0.5),
        dt_bias=draw(heads, dtype=dtype),
        norm=norm,
        in_proj_qkv=lambda x: x[:, : ends[0]],
        in_proj_z=lambda x: x[:, ends[0] : ends[1]],
        in_proj_b=lambda x: x[:, ends[1] : ends[2]],
        in_proj_a=lambda x: x[:, ends[2] :],
        out_proj=lambda x: x,
        sizes=(channels, heads, num_keys, key, value, ends),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gated_delta_rule(dtype):
    layer = delta_layer(dtype)
    channels, heads, num_keys, key, value, ends = layer.sizes
    x = draw(3, ends[2] + heads, dtype=dtype)
    conv, pool = draw(5, channels, 4, dtype=dtype), draw(5, heads, key, value)
    before, states = pool.clone(), SlotStates(conv.clone(), pool, place(pool))
    actual = mixers.SlotDeltaNet(layer).mix(x, states)
    copy = SlotStates(conv, pool, place(pool))
    mixed = mixers.convolved(x[:, :channels], layer.conv1d, copy, activates=True).double()
    for row, slot in ((0, SLOTS[0]), (2, SLOTS[2])):
        query, keys, values = mixed[row].split(
            [num_keys * key, num_keys * key, heads * value], dim=-1
        )
        z = x[row, ends[0] : ends[1]].double().view(heads, value)
        for head in range(heads):
            at = head // (heads // num_keys)
            q, k = (t.view(num_keys, key)[at] for t in (query, keys))
            q, k = (t / (t.square().sum() + 1e-6).sqrt() for t in (q, k))
            time = x[row, ends[2] + head].double() + layer.dt_bias[head].double()
            time = torch.nn.functional.softplus(time)
            state = before[slot, head].double() * (-layer.A_log[head].double().exp() * time).exp()
            strength = torch.sigmoid(x[row, ends[1] + head].double())
            v = values.view(heads, value)[head]
            state = state + torch.outer(k, (v - k @ state) * strength)
            near(state, pool[slot, head], dtype)
            result = q / key**0.5 @ state
            result = result / (result.square().mean() + 1e-5).sqrt()
            expected = result * layer.norm.weight.double() * silu(z[head])
            near(expected, actual[row].view(heads, value)[head], dtype)
    assert torch.equal(pool[[1, 3, 4]], before[[1, 3, 4]])


def mamba_layer(dtype, *, time_step_limit=(0.0, float("inf"))):
    """As `delta_layer`, of a layer with the state space of Mamba 2."""
    heads, groups, size, state_size = 6, 2, 5, 9
    inner = heads * size
    channels = inner + 2 * groups * state_size
    return SimpleNamespace(
        layer_idx=0,
        forward=lambda cache: None,
        num_heads=heads,
        head_dim=size,
        ssm_state_size=state_size,
        n_groups=groups,
        intermediate_size=inner,
        conv_dim=channels,
        conv1d=nn.Conv1d(channels, channels, 4, groups=channels).to(DEVICE, dtype),
        A_log=draw(heads, dtype=dtype, scale=0.5),
        dt_bias=draw(heads, dtype=dtype),
        D=draw(heads, dtype=dtype),
        norm=SimpleNamespace(
            weight=draw(inner, dtype=dtype), variance_epsilon=1e-5, group_size=inner // 2
        ),
        time_step_limit=time_step_limit,
        in_proj=lambda x: x,
        out_proj=lambda x: x,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_space_of_mamba(dtype):
    layer = mamba_layer(dtype)
    heads, groups, size, state_size = 6, 2, layer.head_dim, layer.ssm_state_size
    inner, channels = layer.intermediate_size, layer.conv_dim
    x = draw(3, inner + channels + heads, dtype=dtype)
    x[0, -1], x[2, -2] = 30.0, -12.0  # large and small time steps
    conv, pool = draw(5, channels, 4, dtype=dtype), draw(5, heads, size, state_size)
    before, states = pool.clone(), SlotStates(conv.clone(), pool, place(pool))
    actual = mixers.SlotMamba(layer).mix(x, states)
    gate, xbc, dt = x.split([inner, channels, heads], dim=-1)
    copy = SlotStates(conv, pool, place(pool))
    mixed = mixers.convolved(xbc, layer.conv1d, copy, activates=True).double()
    for row, slot in ((0, SLOTS[0]), (2, SLOTS[2])):
        inputs, b, c = mixed[row].split([inner, groups * state_size, groups * state_size], dim=-1)
        results = []
        for head in range(heads):
            at = head // (heads // groups)
            time = torch.nn.functional.softplus(
                dt[row, head].double() + layer.dt_bias[head].double()
            )
            state = before[slot, head].double() * (-layer.A_log[head].double().exp() * time).exp()
            value = inputs.view(heads, size)[head]
            state = state + torch.outer(value, time * b.view(groups, state_size)[at])
            near(state, pool[slot, head], dtype)
            results.append(state @ c.view(groups, state_size)[at] + layer.D[head].double() * value)
        gated = (torch.cat(results) * silu(gate[row].double())).view(2, -1)
        normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        near(normed.flatten() * layer.norm.weight.double(), actual[row], dtype)
    assert torch.equal(pool[[1, 3, 4]], before[[1, 3, 4]])


def mixers_of(module):
    return [part for part in module.modules() if type(part).__name__ in MIXERS]


@pytest.mark.parametrize("dtype", [torch.bfloat16, *nightly(torch.float32, torch.float16)])
@pytest.mark.parametrize("family", [*FAMILIES, *nightly(*MORE_FAMILIES)])
def test_layers_are_recognised(family, dtype):
    """Other tests here fuse layers in float32."""
    layer = mixers_of(tiny_model(family).to(DEVICE, dtype))[0]
    fused = fused_mixer(layer)
    assert isinstance(fused, SlotMixer)
    assert fused.decodes
    assert fused.packs_prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_computes_something_else_is_kept(family, caplog):
    layer = mixers_of(tiny_model(family).to(DEVICE))[-1]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 1.01
    assert fused_mixer(layer) is None

    def fails(*args, **kwargs):
        raise RuntimeError("it cannot run")

    layer.forward = fails
    assert fused_mixer(layer) is None
    assert "runs as in transformers" in caplog.text


def put_mixers(module):
    """Replace the recurrent layers alone: other kernels take long in the interpreter."""
    for name, part in [*module.named_modules()]:
        if part in mixers_of(module):
            module.set_submodule(name, fused_mixer(part))


@needs_interpreter
@pytest.mark.parametrize("family", ["lfm2", *nightly(*(f for f in ALL_FAMILIES if f != "lfm2"))])
def test_tokens_are_those_of_plain_transformers(family, monkeypatch):
    """Prompts of several lengths share a step, and rows that decode."""
    monkeypatch.setattr(step_check, "PROMPT_LENGTHS", (9, 3))  # kernels are slow here
    monkeypatch.setattr(step_check, "PARTS", (4, 1, 3, 1))
    prompts = [[5], [*range(3, 15)], [9, 8, 7, 6]]
    module = tiny_model(family)
    expected = [reference_greedy(module, prompt, 3) for prompt in prompts]
    put_mixers(module)
    results = generate_all(make_engine(module, BatchedBackend()), prompts, greedy(3))
    for result, (token_ids, logprobs) in zip(results, expected, strict=True):
        assert result.token_ids == token_ids
        for row, entry in zip(logprobs, result.logprobs, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-3)


@needs_interpreter
@pytest.mark.parametrize("family", ["lfm2", *nightly("qwen3_5_text", "mamba2")])
def test_states_in_their_slots_survive_any_load(family):
    """Preemption, snapshots of prefixes, choices of one request, overlap and graphs take part."""
    requests = list(workload(random.Random(0), 5))
    module = tiny_model(family)
    expected = run_workload(make_engine(module, **LIMITS[1]), requests)
    put_mixers(module)
    engine = make_engine(module, DeviceLengths(), overlap=True, max_num_seqs=4, **LIMITS[1])
    engine.model = GraphedModel(engine.model, CPU)
    lines = []
    engine.model.capture(RerunCapturer(), lines.append)
    assert lines[-1].endswith("and checked them")
    assert_same(run_workload(engine, requests), expected)


@needs_interpreter
@pytest.mark.parametrize("family", nightly(*FAMILIES, *MORE_FAMILIES))
def test_tokens_with_all_parts_fused(family, monkeypatch):
    """Norms, MLPs, experts and whole layers too."""
    monkeypatch.setattr(step_check, "PROMPT_LENGTHS", (9, 3))  # kernels are slow here
    monkeypatch.setattr(step_check, "PARTS", (4, 1, 3, 1))
    module = tiny_model(family)
    prompts = [[5], [9, 8, 7]]
    expected = [reference_greedy(module, prompt, 3)[0] for prompt in prompts]
    fuse_modules(module)
    engine = make_engine(module, BatchedBackend())
    attention = fuse_hybrid_attention(module)  # as at load: after the check of steps
    assert attention["FusedAttention"] == (family in ATTENTION_FAMILIES)
    results = generate_all(engine, prompts, greedy(3))
    assert [result.token_ids for result in results] == expected


@needs_interpreter
@torch.inference_mode()
def test_a_hybrid_layer_adds_in_its_norm_and_its_last_product(monkeypatch):
    plain, module = tiny_model("lfm2"), tiny_model("lfm2")
    fuse_modules(module)
    fused = module.model.layers[0]
    assert isinstance(fused, FusedHybridLayer)
    hidden, caches = draw(2, 4, 32), [Cache(layers=[LinearAttentionLayer()]) for _ in range(2)]
    name = cache_argument(plain.model.layers[0].forward)
    plain.model.layers[0](hidden[:, :3], **{name: caches[0]})
    state = caches[0].layers[0].conv_states[0]
    lent = caches[1].layers[0]
    lent.conv_states[0] = torch.cat([state, state])
    starts = torch.arange(3, dtype=torch.int32)
    lent.sequences = StepSequences(torch.tensor([2, 0]), starts, starts[1:] + 3, None)
    lent.conv_states[0][2], lent.conv_states[0][0] = state[0], state[1]
    expected = plain.model.layers[0](hidden[:, 3:], **{name: caches[0]})
    with counted_launches(monkeypatch) as launches:
        actual = fused(hidden[:, 3:], **{name: caches[1]})
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(lent.conv_states[0][[2, 0]], state)
    assert launches == {
        "rms_norm_kernel": 2,
        "linear": 3,
        "conv_update_kernel": 1,
        "gated_kernel": 1,
        "addmm_": 1,
    }


@needs_interpreter
@torch.inference_mode()
def test_a_decode_step_copies_no_state(monkeypatch):
    """Each recurrent layer changes its own in place."""
    module = tiny_model("lfm2")
    put_mixers(module)
    model = make_engine(module, BatchedBackend()).model
    assert model.info.state_bytes > model.copied_state_bytes == 0
    sequences = parity_sequences(model.info)
    model.forward(sequences)
    with counted_launches(monkeypatch) as launches:
        model.forward(last_tokens(sequences, 2))
    assert launches["conv_update_kernel"] == 2
    assert launches["index_copy_"] == 2, "keys and values"


@needs_interpreter
@pytest.mark.parametrize("when", ["before the check of layers", "after it"])
@pytest.mark.parametrize("wrong", ["prompts", "decode steps"])
@torch.inference_mode()
def test_kernels_that_are_wrong_leave_the_others(wrong, when, monkeypatch, caplog):
    """The check of each layer, or later that of the whole model, finds which ones are wrong."""
    mix, module, prompts = mixers.SlotShortConv.mix, tiny_model("lfm2"), [[5], [9, 8, 7, 6]]
    expected = [reference_greedy(module, prompt, 3)[0] for prompt in prompts]

    def wrong_mix(self, rows, states):
        is_wrong = (states.sequences.of_tokens is None) == (wrong == "decode steps")
        return mix(self, rows, states) * (1.5 if is_wrong else 1.0)

    if when == "after it":
        put_mixers(module)
    monkeypatch.setattr(mixers.SlotShortConv, "mix", wrong_mix)
    if when != "after it":
        layer = fused_mixer(mixers_of(module)[0])
        assert (layer is None) == (wrong == "decode steps")
        if layer is None:
            return
        put_mixers(module)
    engine = make_engine(module, BatchedBackend())
    with counted_launches(monkeypatch) as launches:
        results = generate_all(engine, prompts, greedy(3))
    assert [result.token_ids for result in results] == expected
    assert not engine.model.info.packs_prompts
    assert not launches["conv_packed_kernel"]
    assert bool(launches["conv_update_kernel"]) == (wrong == "prompts")
    assert ("fewer kernels" if when == "after it" else "computes prompts as in") in caplog.text


@pytest.mark.parametrize(
    ("family", "fused"),
    [
        (
            "lfm2",
            {"SlotShortConv": 2, "FusedRMSNorm": 9, "MergedMLP": 3, "FusedHybridLayer": 3},
        ),
        (
            "qwen3_5_text",
            {"SlotDeltaNet": 2, "FusedRMSNorm": 9, "MergedMLP": 3, "FusedHybridLayer": 3},
        ),
        ("mamba2", {"SlotMamba": 2, "FusedRMSNorm": 3}),  # a gated norm is another one
    ],
)
def test_all_parts_are_fused_and_an_adapter_finds_their_layers(family, fused):
    module = tiny_model(family).to(DEVICE)
    weights = {name: part.weight for name, part in module.named_modules() if is_linear(part)}
    assert fuse_modules(module) == fused
    has_attention = family in ATTENTION_FAMILIES
    assert fuse_hybrid_attention(module) == ({"FusedAttention": 1} if has_attention else {})
    for name, weight in weights.items():
        place, first = _place(module, name, _fused_layers(module))
        rows = module.get_submodule(place).weight[first : first + len(weight)]
        assert torch.equal(rows, weight), name


def is_linear(part):
    return isinstance(part, nn.Linear)
