"""What `bench.py` compares: kernels with float64, an engine's logits with the plain model's.

Nothing here decides what is timed.
"""

from typing import Any

import torch
from shapes import Shape, model_info

from stonechat_models.backends.base import CausalModel, ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.verify import TOLERANCE, logits_error, random_batch
from stonechat_models.engine.engine import Engine

KERNEL_TOLERANCE = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float32: 1e-4}
CASES = {
    "decode": [(1, 1 + 97 * i) for i in range(9)],
    "prefill": [(140, 140), (200, 512), (1, 300), (33, 33), (140, 401)],
}
HEADS, KV_HEADS, BLOCK_SIZE = 32, 8, 16
LENGTHS = (3, 60, 130, 17, 100, 40, 16, 81)
"""Of the prompts whose logits are compared."""


def kernel_errors(backend: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the largest relative error against float64 for each case, head size and window."""
    errors: dict[str, Any] = {"tolerance": KERNEL_TOLERANCE[dtype]}
    for head_size in (64, 128):
        for case in CASES:
            for window in (None, 100):
                spec = AttentionSpec(scaling=head_size**-0.5, sliding_window=window)
                name = f"{case}, heads of {head_size}" + (", window" if window else "")
                errors[name] = _error(backend, CASES[case], head_size, spec, device, dtype)
                if not errors[name] <= KERNEL_TOLERANCE[dtype]:
                    print(f"  {backend.name}, {name}: OFF by {errors[name]:.3g}", flush=True)
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


def plain_logits(shape: Shape, module: Any, device: torch.device) -> list[torch.Tensor]:
    """Return the logits of the model's own modules with the reference's attention."""
    info = model_info(shape, module, device, module.dtype)
    model = TransformersModel(module, info, SdpaBackend())
    model.allocate_kv_cache(_prompts(info.vocab_size).block_table.max().item() + 1, BLOCK_SIZE)
    return logits_of(model, device)


@torch.inference_mode()
def logits_of(model: CausalModel, device: torch.device) -> list[torch.Tensor]:
    """Return the logits after some prompts, and those of a decode step after it: [prompts, vocab].

    Overwrites the start of the model's KV cache.
    """
    prompts = _prompts(model.info.vocab_size).to(device)
    first = model.forward(prompts).clone()
    return [first, model.forward(_last_tokens(prompts)).clone()]


def verdict(
    expected: list[torch.Tensor], actual: list[torch.Tensor], engine: Engine, is_mixture: bool
) -> dict[str, Any]:
    """Compare logits, in their standard deviations. `off`: whether rounding cannot explain it.

    For a mixture of experts the median row decides: rounding may choose other experts in some.
    """
    tolerance = TOLERANCE["logits"].get(getattr(torch, engine.model.info.dtype), 0.25)
    verdicts: dict[str, Any] = {"tolerance": tolerance, "off": False}
    for name, a, b in zip(("prefill", "decode"), expected, actual, strict=True):
        errors = logits_error(a, b.to(a.device))
        figure = float(errors.median() if is_mixture else errors.max())
        verdicts[name] = figure
        verdicts[f"{name}_median"] = float(errors.median())
        verdicts["off"] |= not figure <= tolerance
    return verdicts


def _prompts(vocab_size: int) -> ForwardBatch:
    lengths = [(n, n) for n in LENGTHS]
    return random_batch(lengths, BLOCK_SIZE, vocab_size=vocab_size)


def _last_tokens(prompts: ForwardBatch) -> ForwardBatch:
    from stonechat_models.backends.transformers.parity_steps import last_tokens

    return last_tokens(prompts, prompts.num_seqs)
