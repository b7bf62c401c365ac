"""Measure Stonechat on a GPU, offline, with random weights in the shapes of known models.

Correctness comes first: the Triton kernels against float64, Triton against the reference backend,
CUDA graphs against plain steps; what is wrong is not timed. Then, for each shape: decode tokens a
second at several batch sizes with their share of the bound that the measured memory bandwidth
sets, prefill tokens a second with their share of the measured matmul rate, how much of a step the
kernels take, start time, and plain `transformers` generate and generate_batch on the same weights.

    python scripts/bench_gpu.py --out results

Writes `results/bench_gpu.json` after each shape. What does not fit into `--minutes` is listed as
skipped, what fails as an error with its reason.
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_checks import check_kernels, compare, first_logprobs
from gpu_measure import Load, bandwidth, matmul_rate, seconds_of
from gpu_shapes import (
    DEFAULT_SHAPES,
    SHAPES,
    Shape,
    active_parameters,
    build_module,
    matmul_parameters,
    model_info,
)

from stonechat_models.attention.choose import choose_attention
from stonechat_models.build import assemble_engine
from stonechat_models.config import EngineConfig
from stonechat_models.device import choose_device
from stonechat_models.engine import Engine
from stonechat_models.transformers_model import TransformersModel

CHECK_TOKENS = 4
CHECK_LIMIT = 0.1
"""Largest difference of log-probabilities in half precision that still counts as equal."""


class Bench:
    """The settings of a run, its deadline and its results so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = choose_device(arguments.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.deadline: float = time.monotonic() + 60 * arguments.minutes
        self.results: dict[str, Any] = {"environment": environment(self.device), "models": {}}

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def run(self) -> None:
        results = self.results
        results["bandwidth_bytes_per_second"] = bandwidth(self.device)
        results["matmul_flops"] = matmul_rate(self.device, self.dtype)
        backend = choose_attention(self.arguments.attention, self.device)
        results["attention"] = backend.name
        results["kernel_errors"] = check_kernels(backend, self.device, self.dtype)
        self._write()
        for name in self.arguments.models:
            results["models"][name] = self._attempt(partial(self._model, SHAPES[name]))
            self._write()
            free(self.device)

    def _write(self) -> None:
        folder = Path(self.arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.results, indent=2)
        (folder / "bench_gpu.json").write_text(text, encoding="utf-8")

    def _attempt(self, part: Callable[[], Any]) -> Any:
        if self.is_late:
            return {"skipped": "out of time"}
        try:
            return part()
        except Exception as error:
            say(f"  {type(error).__name__}: {error}")
            return {"error": f"{type(error).__name__}: {error}"}

    def _engine(
        self, shape: Shape, module: Any, attention: str, *, eager: bool, kv_bytes: int | None
    ) -> Engine:
        config = EngineConfig(
            model=shape.name,
            attention_backend=attention,
            eager=eager,
            kv_cache_bytes=kv_bytes,
            max_num_seqs=max(self.arguments.batches),
            prefix_caching=False,
        )
        backend = choose_attention(attention, self.device)
        info = model_info(shape, module, self.device, self.dtype)
        return assemble_engine(
            TransformersModel(module, info, backend),
            config,
            self.device,
            max_model_len=4 * self.arguments.context,
            eos_token_ids=frozenset(),
            progress=say,
        )

    def _model(self, shape: Shape) -> dict[str, Any]:
        say(f"{shape.name}: building")
        module = build_module(shape, self.device, self.dtype)
        reference = self._logprobs(shape, module, "sdpa", eager=True)
        attention = self.arguments.attention
        checks = {
            "kernels": self._logprobs(shape, module, attention, eager=True),
        }
        result: dict[str, Any] = {}
        if self.arguments.compare:  # before anything is fused
            result["transformers"] = {
                "generate": self._attempt(lambda: self._generate(module)),
                "generate_batch": self._attempt(lambda: self._generate_batch(module)),
            }
            free(self.device)
        if choose_attention(attention, self.device).name == "triton":
            from stonechat_models.fused.replace import fuse_modules

            result["fused_modules"] = fuse_modules(module)
        checks["fused, in graphs"] = self._logprobs(shape, module, attention, eager=False)
        result["checks"] = {
            name: compare(name, reference, found, CHECK_LIMIT) for name, found in checks.items()
        }
        started = time.perf_counter()
        engine = self._engine(
            shape, module, attention, eager=False, kv_bytes=self.arguments.kv_bytes
        )
        result["seconds_to_ready"] = time.perf_counter() - started
        result["kv_capacity_tokens"] = engine.model.info.kv_capacity_tokens
        return result | self._timings(Load(engine, self.device), module)

    def _timings(self, load: Load, module: Any) -> dict[str, Any]:
        def decode(batch: int) -> Callable[[], dict[str, Any]]:
            return lambda: self._decode(load, module, batch)

        return {
            "decode": {str(n): self._attempt(decode(n)) for n in self.arguments.batches},
            "prefill": self._attempt(lambda: self._prefill(load, module)),
        }

    def _logprobs(self, shape: Shape, module: Any, attention: str, *, eager: bool) -> torch.Tensor:
        """What an engine of these settings answers, to be held against another's."""
        generator = torch.Generator().manual_seed(2)
        vocab_size = module.config.vocab_size
        prompts = [
            torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in (3, 60, 130)
        ]
        kv_bytes = self.arguments.kv_bytes or 256 << 20
        engine = self._engine(shape, module, attention, eager=eager, kv_bytes=kv_bytes)
        found = first_logprobs(engine, prompts, CHECK_TOKENS)
        del engine
        free(self.device)
        return found

    def _decode(self, load: Load, module: Any, batch: int) -> dict[str, Any]:
        arguments = self.arguments
        seconds, busy = load.decode(batch, arguments.context, arguments.steps, temperature=0.0)
        sampled, _ = load.decode(batch, arguments.context, arguments.steps, top_p=0.9)
        info = load.engine.model.info
        weights = active_parameters(module, batch) * self.dtype.itemsize
        cached = batch * arguments.context * info.kv_bytes_per_token
        bound = (weights + cached) / self.results["bandwidth_bytes_per_second"]
        say(f"  batch {batch}: {batch / seconds:.0f} tokens/s, {bound / seconds:.0%} of the bound")
        return {
            "tokens_per_second": batch / seconds,
            "milliseconds_per_step": 1e3 * seconds,
            "share_of_bandwidth_bound": bound / seconds,
            "share_of_step_in_kernels": busy,
            "tokens_per_second_with_top_p": batch / sampled,
        }

    def _prefill(self, load: Load, module: Any) -> dict[str, float]:
        length = 2 * self.arguments.context
        rate = load.prefill(8, length)
        config = module.config
        head_size = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        # Two products of 2 operations each, over half of the positions on average.
        attention = 2 * config.num_hidden_layers * config.num_attention_heads * head_size * length
        flops = 2 * matmul_parameters(module) + attention
        share = rate * flops / self.results["matmul_flops"]
        say(f"  prefill: {rate:.0f} tokens/s, {share:.0%} of the matmul rate")
        return {"tokens_per_second": rate, "share_of_matmul_rate": share}

    def _prompts(self, module: Any, batch: int) -> torch.Tensor:
        shape = (batch, self.arguments.context)
        return torch.randint(3, module.config.vocab_size, shape, device=self.device)

    @torch.inference_mode()
    def _generate(self, module: Any) -> dict[str, float]:
        """Decode tokens a second of `generate` with a static cache, by batch size."""
        module.set_attn_implementation("sdpa")
        steps, rates = self.arguments.steps, {}
        for batch in [n for n in (1, 8, 64) if n in self.arguments.batches]:
            prompts = self._prompts(module, batch)

            def generate(num_tokens: int, ids: torch.Tensor = prompts) -> object:
                return module.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=num_tokens,
                    min_new_tokens=num_tokens,
                    do_sample=False,
                    cache_implementation="static",
                    disable_compile=True,
                )

            short = seconds_of(partial(generate, 1), self.device, 1)
            long = seconds_of(partial(generate, 1 + steps), self.device, 1)
            rates[str(batch)] = batch * steps / (long - short)
        return rates

    def _generate_batch(self, module: Any) -> dict[str, float]:
        """Tokens a second of `generate_batch`, prefill included, of the largest batch."""
        from transformers import GenerationConfig

        batch, steps = max(self.arguments.batches), self.arguments.steps
        prompts = self._prompts(module, batch).tolist()
        config = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=-1)
        module.set_attn_implementation("sdpa")
        started = time.perf_counter()
        outputs = module.generate_batch(inputs=prompts, generation_config=config)
        seconds = time.perf_counter() - started
        num_tokens = sum(len(output.generated_tokens) for output in outputs.values())
        if num_tokens < batch * steps:
            raise RuntimeError(f"it gave {num_tokens} of {batch * steps} tokens")
        return {"batch": batch, "tokens_per_second_with_prefill": num_tokens / seconds}


def environment(device: torch.device) -> dict[str, Any]:
    import transformers

    found = {
        "device": str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
    }
    if device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        }
    return found


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def say(line: str) -> None:
    print(line, flush=True)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder for bench_gpu.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=DEFAULT_SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--context", type=int, default=512, help="prompt tokens when decoding")
    parser.add_argument("--steps", type=int, default=32, help="decode steps that are timed")
    parser.add_argument("--attention", default="auto", help="attention backend")
    parser.add_argument("--kv-bytes", type=int, default=None, help="default: what is free")
    parser.add_argument("--minutes", type=float, default=8.0, help="start nothing after this")
    parser.add_argument("--no-compare", dest="compare", action="store_false")
    return parser.parse_args(words)


if __name__ == "__main__":
    Bench(parse_arguments()).run()
