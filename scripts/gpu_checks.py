"""Correctness before speed: what `bench_gpu.py` refuses to time when it is wrong."""

from typing import Any

import torch

from stonechat_models.attention.backend import AttentionSpec
from stonechat_models.attention.sdpa import SdpaBackend
from stonechat_models.cuda import largest_batch
from stonechat_models.engine import Engine
from stonechat_models.types import GenerateRequest, SamplingParams

KERNEL_TOLERANCE = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float32: 1e-4}


def check_kernels(backend: Any, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Largest relative error of decode and prefill against float64; raises above tolerance."""
    errors = {}
    for name, num_tokens, num_seqs in (("decode", 9, 9), ("prefill", 700, 5)):
        batch = largest_batch(num_tokens, num_seqs, 512, 16)
        if name == "decode":  # each of these tokens is the last of a long context
            batch = _with_contexts(batch, 16)
        batch = batch.to(device)
        num_slots = (int(batch.block_table.max()) + 1) * 16
        generator = torch.Generator(device).manual_seed(0)
        shapes = ((batch.num_tokens, 32, 128), (num_slots, 8, 128), (num_slots, 8, 128))
        query, keys, values = (
            torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes
        )
        spec = AttentionSpec(scaling=128**-0.5)
        actual = backend.attend(query, keys, values, batch, 16, spec)
        expected = SdpaBackend().attend(query.double(), keys, values, batch, 16, spec)
        error = float((actual.double() - expected).abs().max() / expected.abs().max())
        if not error <= KERNEL_TOLERANCE[dtype]:
            raise RuntimeError(f"the {name} kernel of {backend.name} is wrong by {error}")
        errors[name] = error
    return errors


def _with_contexts(batch: Any, block_size: int) -> Any:
    from dataclasses import replace

    lengths = [1 + 97 * i for i in range(batch.num_seqs)]
    widths = [-(-length // block_size) for length in lengths]
    table = torch.zeros(batch.num_seqs, max(widths), dtype=torch.int32)
    first = 0
    for i, width in enumerate(widths):
        table[i, :width] = torch.arange(first, first + width)
        first += width
    return replace(
        batch,
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        context_lens_list=lengths,
        block_table=table,
    )


def first_logprobs(engine: Engine, prompts: list[list[int]], num_tokens: int) -> torch.Tensor:
    """The best five log-probabilities at each of the first greedy tokens: [prompts, tokens, 5]."""
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


def compare(name: str, expected: torch.Tensor, actual: torch.Tensor, limit: float) -> float:
    """Largest difference of the first token's log-probabilities; raises above `limit`.

    Later tokens may differ for good where two are nearly as likely, so they are not compared.
    """
    difference = float((expected[:, 0] - actual[:, 0]).abs().max())
    if not difference <= limit:
        raise RuntimeError(f"{name}: log-probabilities differ by {difference}")
    return difference
