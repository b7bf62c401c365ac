"""The parts of `bench.py`. Each runs in a process of its own and saves its results as they come.

An exception ends only its part. Results that the part saved before are kept.
"""

import argparse
import gc
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checks import check_kernels, difference, first_logprobs, require
from http_load import measure_over_http, save_model
from measure import Load, bandwidth, matmul_rate, read_bandwidth, seconds_of
from shapes import SHAPES, Shape, build_module, bytes_of_a_step, matmul_parameters, model_info

from stonechat_models.backends.quantization.device_support import TRITON_BACKENDS
from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from stonechat_models.hardware.device import choose_device
from stonechat_models.runtime.build import assemble_engine, build_engine

CHECK_TOKENS = 4
CHECK_SEQS = 8
CHECK_LIMIT = 0.1
"""Largest difference of log-probabilities in half precision that still counts as equal."""
GRAPH_LIMIT = 0.03
"""The same limit for a step with and without its graph. Only the splits of the keys differ."""
REQUESTS_A_STREAM = 4


class Section:
    """One part: its settings, its deadline, and its results so far."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        deadline: float,
        note: Callable[[dict[str, Any]], None],
    ) -> None:
        """Nothing new starts after `deadline`, in `time.time`. `note` saves the results."""
        self.arguments = arguments
        self.device = choose_device(arguments.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.results: dict[str, Any] = {}
        self._deadline = deadline
        self._note = note
        self._probe: ProbeContext | None = None
        self._matmul_parameters = 0.0

    def run(self, name: str) -> None:
        """Run the part `name`, such as "device" or "model tiny". Raises the part's exceptions."""
        part, _, shape = name.partition(" ")
        parts: dict[str, Callable[..., None]] = {
            "device": self._device,
            "model": self._model,
            "http": self._http,
            "compare": self._compare,
        }
        parts[part](*([SHAPES[shape]] if shape else []))

    def keep(self, **values: Any) -> None:
        """Add `values` to the results, and save all of them at once."""
        self.results |= values
        self._note(self.results)

    def attempt(self, part: Callable[[], Any]) -> Any:
        """Return the result of `part`, or a dictionary that says why there is none."""
        if time.time() > self._deadline:
            return {"skipped": "out of time"}
        try:
            return part()
        except Exception as error:
            say(f"  {type(error).__name__}: {error}")
            return {"error": f"{type(error).__name__}: {error}"}

    # --- the device ---

    def _device(self) -> None:
        self.keep(environment=environment(self.device))
        self.keep(bandwidth_bytes_per_second=bandwidth(self.device))
        self.keep(read_bytes_per_second=read_bandwidth(self.device))
        self.keep(matmul_flops=matmul_rate(self.device, self.dtype))
        backend = choose_attention(self.arguments.attention, self.device, progress=say)
        names = ("flashinfer", "triton") if backend.name in TRITON_BACKENDS else (backend.name,)
        errors = {name: self.attempt(partial(self._kernels, name)) for name in names}
        self.keep(attention=backend.name, kernel_errors=errors)

    def _kernels(self, name: str) -> dict[str, float]:
        return check_kernels(choose_attention(name, self.device), self.device, self.dtype)

    # --- a model ---

    def _model(self, shape: Shape) -> None:
        started = time.perf_counter()
        module = build_module(shape, self.device, self.dtype)
        self.keep(seconds_to_build=time.perf_counter() - started)
        attention = self.arguments.attention
        checks = {}
        # This check runs the model's own code, which fusing replaces, so it comes first.
        self._probe = check_packing(module, self.device, module.config.vocab_size)
        self._matmul_parameters = matmul_parameters(module)
        reference = self._logprobs(shape, module, "sdpa", eager=True)
        plain = self._logprobs(shape, module, attention, eager=True)
        checks["kernels"] = require("kernels", difference(reference, plain), CHECK_LIMIT)
        self.keep(checks=checks)
        if choose_attention(attention, self.device).name in TRITON_BACKENDS:
            from stonechat_models.backends.transformers.fused.replace import fuse_modules

            self.keep(fused_modules=dict(fuse_modules(module)))
        fused = self._logprobs(shape, module, attention, eager=True)
        checks["fused"] = require("fused", difference(reference, fused), CHECK_LIMIT)
        graphed = self._logprobs(shape, module, attention, eager=False)
        checks["graphs"] = require("graphs", difference(fused, graphed), GRAPH_LIMIT)
        self.keep(checks=checks)
        self._timings(shape, module, fused)

    def _timings(self, shape: Shape, module: Any, reference: torch.Tensor) -> None:
        quantization = "none"
        if self.arguments.quantize is not None:
            from stonechat_models.backends.transformers.quantize import quantize_checked

            quantization, self._probe = quantize_checked(
                module, self.arguments.quantize, self.dtype, None, probe=self._probe
            )
        started = time.perf_counter()
        engine = self._engine(shape, module)
        info = engine.model.info
        self.keep(
            quantization=quantization,
            seconds_to_ready=time.perf_counter() - started,
            attention=info.attention_backend,
            in_graphs=bool(getattr(engine.model, "_graphs", None)),
            kv_capacity_tokens=info.kv_capacity_tokens,
            kv_bytes_per_token=info.kv_bytes_per_token,
            weight_bytes=info.weight_bytes,
        )
        if quantization != "none":
            logprobs = first_logprobs(engine, self._check_prompts(info.vocab_size), CHECK_TOKENS)
            self.keep(quantization_changes_logprobs_by=difference(reference, logprobs))
        load = Load(engine, self.device)
        decode: dict[str, Any] = {}
        for batch in self.arguments.batches:
            decode[str(batch)] = self.attempt(partial(self._decode, load, module, batch))
            self.keep(decode=decode)
        self.keep(prefill=self.attempt(partial(self._prefill, load, module)))

    def _decode(self, load: Load, module: Any, batch: int) -> dict[str, Any]:
        context, steps = self.arguments.context, self.arguments.steps
        times = load.decode(batch, context, steps, temperature=0.0)
        sampled = load.decode(batch, context, steps, top_p=0.9, profiled=False)
        cached = batch * times.context * load.engine.model.info.kv_bytes_per_token
        say(f"  batch {batch}: {batch / times.seconds:.0f} tokens/s")
        return {
            "tokens_per_second": batch / times.seconds,
            "milliseconds_per_step": 1e3 * times.seconds,
            "bytes_per_step": bytes_of_a_step(module, batch) + cached,
            "kernel_milliseconds_per_step": _milliseconds(times.kernel_seconds),
            "milliseconds_by_kernel": {k: 1e3 * s for k, s in times.kernels.items()},
            "tokens_per_second_with_top_p": batch / sampled.seconds,
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
        say(f"  prefill: {rate:.0f} tokens/s")
        return {
            "tokens_per_second": rate,
            "flops_per_second": rate * (2 * self._matmul_parameters + attention),
        }

    def _engine(self, shape: Shape, module: Any) -> Engine:
        config = EngineConfig(
            model=shape.name,
            attention_backend=self.arguments.attention,
            kv_cache_bytes=self.arguments.kv_bytes,
            max_num_seqs=max(self.arguments.batches),
            prefix_caching=False,
        )
        return self._assemble(shape, module, config, 4 * self.arguments.context)

    def _assemble(
        self, shape: Shape, module: Any, config: EngineConfig, max_model_len: int
    ) -> Engine:
        info = model_info(shape, module, self.device, self.dtype)
        unchecked = choose_attention(config.attention_backend, self.device)
        model = TransformersModel(module, info, unchecked, probe=self._probe)
        parity_check = model.attention_parity_check
        model.set_attention(
            choose_attention(config.attention_backend, self.device, parity_check, say)
        )
        return assemble_engine(
            model,
            config,
            self.device,
            max_model_len=max_model_len,
            eos_token_ids=frozenset(),
            progress=say,
        )

    def _check_prompts(self, vocab_size: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(2)
        return [
            torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in (3, 60, 130)
        ]

    def _logprobs(self, shape: Shape, module: Any, attention: str, *, eager: bool) -> torch.Tensor:
        """Return the first log-probabilities of a small engine with these settings, to compare."""
        config = EngineConfig(
            model=shape.name,
            attention_backend=attention,
            eager=eager,
            kv_cache_bytes=self.arguments.kv_bytes or 256 << 20,
            max_num_seqs=CHECK_SEQS,
            max_batch_tokens=256,
            prefix_caching=False,
        )
        engine = self._assemble(shape, module, config, 256)
        rows = first_logprobs(engine, self._check_prompts(module.config.vocab_size), CHECK_TOKENS)
        del engine
        free(self.device)
        return rows

    # --- the whole path ---

    def _http(self, shape: Shape) -> None:
        """Run the same load on an engine in this process, then on `stonechat serve`."""
        arguments = self.arguments
        with tempfile.TemporaryDirectory(prefix="stonechat-bench-") as name:
            folder = Path(name)
            module = build_module(shape, self.device, self.dtype)
            save_model(module, folder)
            del module
            free(self.device)
            self.keep(
                streams=arguments.streams,
                input_tokens=arguments.http_tokens,
                output_tokens=arguments.http_tokens,
                in_process_tokens_per_second=self._in_process(folder),
            )
            free(self.device)
            http = measure_over_http(
                folder,
                self._serve_flags(),
                streams=arguments.streams,
                num_requests=REQUESTS_A_STREAM * arguments.streams,
                num_tokens=arguments.http_tokens,
                timeout=max(10.0, self._deadline - time.time()),
            )
        rate, base = http["tokens_per_second"], self.results["in_process_tokens_per_second"]
        self.keep(**http, share_of_in_process=rate / base)

    def _in_process(self, folder: Path) -> float:
        arguments = self.arguments
        config = EngineConfig(
            model=str(folder),
            device=arguments.device,
            backend="transformers",
            attention_backend=arguments.attention,
            quantize=arguments.quantize or "auto",
            kv_cache_bytes=arguments.kv_bytes,
            max_model_len=_context_over_http(arguments),
        )
        engine, _ = build_engine(config, say)
        load = Load(engine, self.device)
        streams, length = arguments.streams, arguments.http_tokens
        load.closed_loop(streams, streams, length, 4)
        rate = load.closed_loop(streams, REQUESTS_A_STREAM * streams, length, length)
        say(f"  in process: {rate:.0f} tokens/s")
        return rate

    def _serve_flags(self) -> list[str]:
        arguments = self.arguments
        flags = ["--device", arguments.device, "--backend", "transformers"]
        flags += ["--attention-backend", arguments.attention]
        flags += ["--max-model-len", str(_context_over_http(arguments))]
        if arguments.quantize is not None:
            flags += ["--quantize", arguments.quantize]
        if arguments.kv_bytes is not None:
            flags += ["--kv-cache-size", str(arguments.kv_bytes)]
        return flags

    # --- plain transformers ---

    def _compare(self, shape: Shape) -> None:
        module = build_module(shape, self.device, self.dtype)
        module.set_attn_implementation("sdpa")
        generate: dict[str, Any] = {}
        for batch in [n for n in (1, 8, 64) if n in self.arguments.batches]:
            generate[str(batch)] = self.attempt(partial(self._generate, module, batch))
            self.keep(generate=generate)
        free(self.device)
        self.keep(generate_batch=self.attempt(partial(self._generate_batch, module)))

    def _prompts(self, module: Any, batch: int) -> torch.Tensor:
        shape = (batch, self.arguments.context)
        return torch.randint(3, module.config.vocab_size, shape, device=self.device)

    @torch.inference_mode()
    def _generate(self, module: Any, batch: int) -> float:
        """Return decode tokens a second of `generate` with a static cache."""
        steps, prompts = self.arguments.steps, self._prompts(module, batch)

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

        short = seconds_of(partial(generate, 1), self.device, 1)
        long = seconds_of(partial(generate, 1 + steps), self.device, 1)
        if long <= short:
            raise RuntimeError(
                f"{steps} more tokens took {long - short:.4f} s, so the measurement is too noisy"
            )
        return batch * steps / (long - short)

    def _generate_batch(self, module: Any) -> dict[str, float]:
        """Return decode tokens a second of `generate_batch` for the largest batch size.

        It times how much longer more tokens take, because each call includes the start of
        `generate_batch` (graphs, warm-up).
        """
        batch, steps = max(self.arguments.batches), self.arguments.steps
        prompts = self._prompts(module, batch).tolist()
        short = self._seconds_of_batch(module, prompts, 1)
        long = self._seconds_of_batch(module, prompts, 1 + steps)
        if long <= short:
            raise RuntimeError(
                f"{steps} more tokens took {long - short:.4f} s, so the measurement is too noisy"
            )
        return {"batch": batch, "tokens_per_second": batch * steps / (long - short)}

    def _seconds_of_batch(self, module: Any, prompts: list[list[int]], num_tokens: int) -> float:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1)
        sizes = None  # transformers chooses them by the free memory
        if self.device.type == "cpu":
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


def environment(device: torch.device) -> dict[str, Any]:
    import transformers

    facts = {
        "device": str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    if device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        }
    return facts


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.split("\n")[0].strip() or None


def _context_over_http(arguments: argparse.Namespace) -> int:
    """Return a context length that also fits the prompts that calibrate the load generator."""
    return max(256, 4 * int(arguments.http_tokens))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def say(line: str) -> None:
    print(f"  {line.strip()}", flush=True)
