"""The Triton kernels on steps as CUDA graphs capture them: padded, with expected host numbers.

Without CUDA they run in Triton's interpreter.
"""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.quantization.device_support import FP8_KV_CAPABILITY
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend
from stonechat_models.backends.transformers.cuda.static_buffers import StaticBuffers, StepShape
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.backends.transformers.verify import random_batch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_SIZE = 16
HEADS, KV_HEADS, SIZE = 4, 2, 32
SHAPE = StepShape(tokens=24, seqs=6, rows=6)
STEPS = {
    "mixed": [(1, 70), (9, 9), (1, 1), (4, 41)],
    "decode": [(1, 70), (1, 20), (1, 33)],
    "prompts": [(5, 5), (8, 40)],
    "drafts": [(2, 50), (3, 80)],
    "one token of padding": [(20, 30), (1, 64), (2, 2)],
    "no padding": [(9, 40), (1, 30), (8, 8), (4, 20), (1, 64), (1, 1)],
    "nothing": [],
}
SPECS = {
    "plain": {},
    "window": {"sliding_window": 20},
    "sinks": {"sinks": True},
    "chunks": {"chunk_size": 17, "softcap": 3.0},
}
OTHER_SPECS = [name for name in SPECS if name != "plain"]


def padded(lengths, generator):
    """The step, and the same in static buffers."""
    step = random_batch(lengths, BLOCK_SIZE, generator).to(DEVICE) if lengths else None
    buffers = StaticBuffers.allocate([SHAPE], 6, 0, vocab_size=1, device=DEVICE)
    buffers.clear(SHAPE)
    if step is not None:
        buffers.fill(step, SHAPE)
    return step, buffers.view(SHAPE, BLOCK_SIZE)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        *((name, "plain") for name in STEPS),
        *(("mixed", spec) for spec in OTHER_SPECS),
        *(
            pytest.param(name, spec, marks=pytest.mark.nightly)
            for name in STEPS
            if name != "mixed"
            for spec in OTHER_SPECS
        ),
    ],
)
def test_padded_steps(name, spec):
    check(STEPS[name], **SPECS[spec])


def test_a_padded_step_over_an_fp8_cache():
    if DEVICE.type == "cuda" and torch.cuda.get_device_capability() < FP8_KV_CAPABILITY:
        pytest.skip("Triton converts no float8 here")
    check(STEPS["mixed"], kv_dtype=torch.float8_e4m3fn)


def check(lengths, kv_dtype=torch.float32, **fields):
    generator = torch.Generator().manual_seed(0)
    step, view = padded(lengths, generator)
    spec = AttentionSpec(**{"scaling": SIZE**-0.5, **fields})
    sinks = torch.randn(HEADS, generator=generator) if spec.sinks else None

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    cache = [random(20 * BLOCK_SIZE, KV_HEADS, SIZE).to(kv_dtype) for _ in range(2)]
    kv = LayerKV(*cache, BLOCK_SIZE)
    query = random(SHAPE.tokens, HEADS, SIZE)
    on_device = None if sinks is None else sinks.to(DEVICE)
    output = TritonBackend(32).attend(query, kv, view, replace(spec, sinks=on_device))
    num_tokens = 0
    if step is not None:
        num_tokens = step.num_tokens
        on_cpu = LayerKV(*(x.float().cpu() for x in cache), BLOCK_SIZE)
        expected = SdpaBackend().attend(
            query[:num_tokens].cpu(), on_cpu, step.to("cpu"), replace(spec, sinks=sinks)
        )
        torch.testing.assert_close(output[:num_tokens].cpu(), expected, rtol=0, atol=1e-5)
    assert (output[num_tokens:] == 0).all()
