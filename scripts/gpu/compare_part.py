"""The part of `bench.py` that times plain `transformers` on the same shapes."""

import time
from functools import partial
from typing import Any

import torch
from rates import seconds_of
from sections import Section
from shapes import Shape, build_module


def measure_transformers(section: Section, shape: Shape) -> None:
    module = build_module(shape, section.device, section.dtype)
    module.set_attn_implementation("sdpa")
    generate: dict[str, Any] = {}
    for batch in [n for n in (1, 8, 64) if n in section.arguments.batches]:
        generate[str(batch)] = section.attempt(partial(_generate, section, module, batch))
        section.keep(generate=generate)
    section.free()
    section.keep(generate_batch=section.attempt(partial(_generate_batch, section, module)))


def _prompts(section: Section, module: Any, batch: int) -> torch.Tensor:
    shape = (batch, section.arguments.context)
    return torch.randint(3, module.config.vocab_size, shape, device=section.device)


@torch.inference_mode()
def _generate(section: Section, module: Any, batch: int) -> float:
    """Return decode tokens a second of `generate` with a static cache."""
    steps, prompts = 2 * section.arguments.steps, _prompts(section, module, batch)

    def generate(num_tokens: int) -> object:
        return module.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            cache_implementation="static",
            disable_compile=True,
        )

    short = seconds_of(partial(generate, 1), section.device, 1)
    long = seconds_of(partial(generate, 1 + steps), section.device, 1)
    return float(batch * steps / _longer(long, short, steps))


def _generate_batch(section: Section, module: Any) -> dict[str, float]:
    """Return decode tokens a second of `generate_batch` for the largest batch size.

    It times how much longer more tokens take, because each call includes the start of
    `generate_batch` (graphs, warm-up).
    """
    batch, steps = max(section.arguments.batches), 2 * section.arguments.steps
    prompts = _prompts(section, module, batch).tolist()
    short = _seconds_of_batch(section, module, prompts, 1)
    long = _seconds_of_batch(section, module, prompts, 1 + steps)
    return {"batch": batch, "tokens_per_second": batch * steps / _longer(long, short, steps)}


def _longer(long: float, short: float, steps: int) -> float:
    if long <= short:
        raise RuntimeError(
            f"{steps} more tokens took {long - short:.4f} s, so the measurement is too noisy"
        )
    return long - short


def _seconds_of_batch(
    section: Section, module: Any, prompts: list[list[int]], num_tokens: int
) -> float:
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1)
    sizes = None  # transformers chooses them by the free memory
    if section.device.type == "cpu":
        sizes = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)
    started = time.perf_counter()
    outputs = module.generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=sizes
    )
    seconds = time.perf_counter() - started
    num_returned = sum(len(output.generated_tokens) for output in outputs.values())
    if num_returned < len(prompts) * num_tokens:
        raise RuntimeError(
            f"generate_batch returned {num_returned} of {len(prompts) * num_tokens} tokens"
        )
    return seconds
