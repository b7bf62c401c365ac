"""The correctness checks of `bench.py`. It does not time a part that fails them."""

from typing import Any

import torch

from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.backends.transformers.verify import random_batch
from stonechat_models.engine.engine import Engine
from stonechat_models.types import GenerateRequest, SamplingParams

KERNEL_TOLERANCE = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float32: 1e-4}
CASES = {
    "decode": [(1, 1 + 97 * i) for i in range(9)],
    "prefill": [(140, 140), (200, 512), (1, 300), (33, 33), (140, 401)],
}
HEADS, KV_HEADS, BLOCK_SIZE = 32, 8, 16


def check_kernels(backend: Any, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest relative error against float64 for each case, head size and window.

    Raises `RuntimeError` if an error is above the tolerance.
    """
    errors = {}
    for head_size in (64, 128):
        for case in CASES:
            for window in (None, 100):
                spec = AttentionSpec(scaling=head_size**-0.5, sliding_window=window)
                name = f"{case}, heads of {head_size}" + (", window" if window else "")
                error = _error(backend, CASES[case], head_size, spec, device, dtype)
                if not error <= KERNEL_TOLERANCE[dtype]:
                    raise RuntimeError(
                        f"{backend.name} attention fails in {name}: relative error {error}"
                    )
                errors[name] = error
    return errors


def _error(
    backend: Any,
    lengths: list[tuple[int, int]],
    head_size: int,
    spec: AttentionSpec,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    batch = random_batch(lengths, BLOCK_SIZE, torch.Generator().manual_seed(0)).to(device)
    num_slots = (int(batch.block_table.max()) + 1) * BLOCK_SIZE
    generator = torch.Generator(device).manual_seed(0)
    shapes = (
        (batch.num_tokens, HEADS, head_size),
        (num_slots, KV_HEADS, head_size),
        (num_slots, KV_HEADS, head_size),
    )
    query, keys, values = (
        torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes
    )
    kv = LayerKV(keys, values, BLOCK_SIZE)
    actual = backend.attend(query, kv, batch, spec)
    expected = SdpaBackend().attend(query.double(), kv, batch, spec)
    return float((actual.double() - expected).abs().max() / expected.abs().max())


def first_logprobs(engine: Engine, prompts: list[list[int]], num_tokens: int) -> torch.Tensor:
    """Return the five best log-probabilities of the first greedy tokens: [prompts, tokens, 5]."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, top_logprobs=5, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.add(GenerateRequest(request_id=f"check {i}", prompt_token_ids=prompt, params=params))
    rows: dict[str, list[tuple[float, ...]]] = {}
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise RuntimeError(output.error)
            entries = output.logprobs or ()
            rows.setdefault(output.request_id, []).extend(e.top_logprobs for e in entries)
    return torch.tensor([rows[f"check {i}"] for i in range(len(prompts))])


def difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the largest difference of the best log-probabilities at the first two tokens.

    The first comes from a prefill, the second from a decode step. Later tokens do not count: after
    two nearly equal tokens, both continuations may be right.
    """
    return float((expected[:, :2] - actual[:, :2]).abs().max())


def require(name: str, change: float, limit: float) -> float:
    """Return the difference of log-probabilities. Raises `RuntimeError` if it is above `limit`."""
    if not change <= limit:
        raise RuntimeError(f"{name}: log-probabilities differ by {change}")
    return change
