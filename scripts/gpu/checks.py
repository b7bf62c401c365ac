"""What `bench.py` compares: kernels with float64, an engine's logits with the plain model's.

Nothing here decides what is timed.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from shapes import Shape, model_info

from stonechat_models.backends.base import CausalModel, ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.verify import logits_error, random_batch

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


@dataclass(frozen=True, slots=True)
class Expected:
    """Logits of the model's own modules with the reference's attention; see `logits_of`."""

    plain: list[torch.Tensor]
    exact: list[torch.Tensor] | None
    """Those of the same weights in float32. None: there are none, or no room for them."""


def expected_logits(shape: Shape, module: Any, device: torch.device) -> Expected:
    plain = _plain_logits(shape, module, device)
    if shape.codes:  # they stay what they are
        return Expected(plain, None)
    try:
        exact = _plain_logits(shape, copy.deepcopy(module).float(), device)
    except torch.OutOfMemoryError:
        exact = None
    return Expected(plain, exact)


def _plain_logits(shape: Shape, module: Any, device: torch.device) -> list[torch.Tensor]:
    info = model_info(shape, module, device, module.dtype)
    model = TransformersModel(module, info, SdpaBackend())
    model.allocate_kv_cache(int(_prompts(info.vocab_size).block_table.max()) + 1, BLOCK_SIZE)
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
    expected: Expected, actual: list[torch.Tensor], tolerance: float, is_mixture: bool
) -> dict[str, Any]:
    """Compare an engine's logits, in standard deviations. `off`: rounding cannot explain them.

    They are off if they differ from the plain model's by more than the tolerance, and are also
    further from those in float32 than the plain model's are, by half. For a mixture of experts the
    median row decides: rounding may choose other experts in some.
    """

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        errors = logits_error(a, b.to(a.device))
        return float(errors.median() if is_mixture else errors.max())

    verdicts: dict[str, Any] = {"tolerance": tolerance, "off": False}
    for i, name in enumerate(("prefill", "decode")):
        verdicts[name] = error(expected.plain[i], actual[i])
        is_off = not verdicts[name] <= tolerance
        if expected.exact is not None:
            ours = error(expected.exact[i], actual[i])
            plain = error(expected.exact[i], expected.plain[i])
            verdicts[f"{name}_from_float32"] = {"engine": ours, "plain": plain}
            is_off = is_off and not ours <= 1.5 * plain
        verdicts["off"] |= is_off
    return verdicts


def _prompts(vocab_size: int) -> ForwardBatch:
    lengths = [(n, n) for n in LENGTHS]
    return random_batch(lengths, BLOCK_SIZE, vocab_size=vocab_size)


def _last_tokens(prompts: ForwardBatch) -> ForwardBatch:
    from stonechat_models.backends.transformers.cuda.parity_steps import last_tokens

    return last_tokens(prompts, prompts.num_seqs)
