"""Times the variants of `sweep.py` on a device. Kernels are compiled ahead in worker processes."""

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any, TextIO

import torch
from compile_ahead import only_compile
from sweep_cases import BLOCK_SIZE, NUM_KV_HEADS, Case, variants

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.tile_sizes import Tiles, TileShape, TileSizes
from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend
from stonechat_models.backends.transformers.kv_cache import LayerKV
from stonechat_models.hardware.dependent_launch import launches_early

REPEATS = 3
CYCLES_PER_SECOND = 2e9
"""At least those of a device, to keep it busy for a time."""
TOLERANCE = 0.02
"""How far two variants may differ, as a share of the largest number."""
LEAST_SECONDS = 2.0


@dataclass(frozen=True)
class FixedTiles(Tiles):
    """The same tile sizes for every shape."""

    tile: TileSizes | None = None

    def decode(self, shape: TileShape) -> TileSizes:
        assert self.tile is not None
        return self.tile

    prefill = decode


def call(case: Case, tile: TileSizes, num_sm: int, inputs: tuple[Any, ...]) -> list[Any]:
    """The calls of one timing."""
    query, kv, batches = inputs
    backend = TritonBackend(num_sm, FixedTiles(tile=tile))
    spec = AttentionSpec(scaling=case.head_size**-0.5)
    return [partial(backend.attend, query, kv, batch, spec) for batch in batches]


def inputs_of(case: Case, cache: torch.Tensor) -> tuple[torch.Tensor, LayerKV, list[ForwardBatch]]:
    """Query, cache and batches, on the device of `cache` [2, numbers], the memory of the cache."""
    device = cache.device
    keys, values = (half.view(-1, NUM_KV_HEADS, case.head_size) for half in cache)
    heads = NUM_KV_HEADS * case.group
    shape = (case.batch * case.queries, heads, case.head_size)
    query = torch.randn(shape, device=device).to(cache.dtype)
    batches = case.batches(len(keys) // BLOCK_SIZE, device)
    return query, LayerKV(keys, values, BLOCK_SIZE), batches


def compile_variant(case: Case, tile: TileSizes, num_sm: int) -> float:
    """In a worker. Returns seconds."""
    started = time.perf_counter()
    numbers = 1024 * BLOCK_SIZE * NUM_KV_HEADS * case.head_size
    cache = torch.empty(2, numbers, dtype=torch.bfloat16, device="meta")
    for function in call(case, tile, num_sm, inputs_of(case, cache)):
        function()
    return time.perf_counter() - started


def seconds_per_call(calls: list[Callable[[], Any]], device: torch.device) -> float:
    """The median of a few runs of all calls. The device only starts when all of them wait for it,
    so that the host's time does not count.
    """
    started = time.perf_counter()
    for function in calls:
        function()
    host_seconds = time.perf_counter() - started
    if device.type != "cuda":
        return host_seconds / len(calls)
    cuda: Any = torch.cuda  # parts of it have no types
    times: list[float] = []
    for _ in range(REPEATS):
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda._sleep(int((1.5 * host_seconds + 1e-4) * CYCLES_PER_SECOND))
        start.record()
        for function in calls:
            function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times) / len(calls)


class Sweep:
    """Times cases until `end`, by `time.monotonic`. `out` gets a line of JSON per result."""

    def __init__(self, device: torch.device, end: float, out: TextIO, workers: int) -> None:
        self.results: list[dict[str, Any]] = []
        self._end = end
        self._device = device
        self._out = out
        self._tiles = Tiles()
        self._num_sm = 132
        self._pool: ProcessPoolExecutor | None = None
        self._compiled: dict[tuple[object, ...], Future[float]] = {}
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self._tiles = Tiles((properties.major, properties.minor))
            self._num_sm = properties.multi_processor_count
            target = (self._tiles.capability, launches_early(device))
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), only_compile, target)

    def left(self) -> float:
        return self._end - time.monotonic()

    def note(self, **result: Any) -> None:
        self.results.append(result)
        self._out.write(json.dumps(result) + "\n")
        self._out.flush()

    def compile_ahead(self, cases: list[Case]) -> None:
        """Start to compile all variants of `cases`, in this order."""
        pool = self._pool
        if pool is None:
            return
        for case in cases:
            for tile in variants(case, self._tiles):
                key = _compile_key(case, tile)
                if key not in self._compiled:
                    self._compiled[key] = pool.submit(compile_variant, case, tile, self._num_sm)

    def run(self, case: Case, cache: torch.Tensor, limit: int | None = None) -> None:
        """Time the variants of a case, or the first `limit`."""
        inputs = inputs_of(case, cache)
        expected = None
        for number, tile in enumerate(variants(case, self._tiles)[:limit]):
            if self.left() < LEAST_SECONDS:
                return
            facts = {**asdict(case), "tile": asdict(tile), "is_today": number == 0}
            try:
                self._wait_for_kernel(case, tile)
                calls = call(case, tile, self._num_sm, inputs)
                actual = calls[0]()
                expected = actual if expected is None else expected
                error = float((actual - expected).abs().max() / expected.abs().max())
                seconds = seconds_per_call(calls, self._device)
            except Exception as problem:  # noted, and the next variant is tried
                self.note(**facts, problem=str(problem)[:300] or type(problem).__name__)
                continue
            wrong = {} if error <= TOLERANCE else {"problem": f"differs by {error:.2g}"}
            rate = case.num_bytes if case.kind == "decode" else case.flops
            self.note(**facts, us=1e6 * seconds, rate=rate / seconds, **wrong)

    def _wait_for_kernel(self, case: Case, tile: TileSizes) -> None:
        """Raises the compiler's error."""
        future = self._compiled.get(_compile_key(case, tile))
        if future is not None:
            with suppress(BrokenProcessPool):  # the launch compiles it then
                future.result(timeout=self.left())

    def run_products(self, sizes: dict[str, Any], rows: tuple[int, ...]) -> None:
        """Time matrix products of a few rows with cuBLAS and cublasLt."""
        for model, shapes in sizes.items():
            for k, n in shapes:
                if self.left() > LEAST_SECONDS:
                    self._run_product(model, k, n, rows)

    def _run_product(self, model: str, k: int, n: int, rows: tuple[int, ...]) -> None:
        new = partial(torch.randn, device=self._device, dtype=torch.bfloat16)
        num_weights = max(2, (160 << 20) // (2 * n * k)) if self._device.type == "cuda" else 2
        weights = [new(n, k) for _ in range(num_weights)]
        for m in rows:
            x = new(m, k)
            linear = torch.nn.functional.linear
            calls: list[Callable[[], Any]] = [partial(linear, x, weight) for weight in weights]
            for library in ("cublas", "cublaslt") if self._device.type == "cuda" else ("cpu",):
                facts = {"kind": "product", "model": model, "m": m, "k": k, "n": n}
                try:
                    if library != "cpu":
                        torch.backends.cuda.preferred_blas_library(library)
                    calls[0]()
                    seconds = seconds_per_call(calls, self._device)
                except Exception as problem:
                    self.note(**facts, library=library, problem=str(problem)[:300])
                    continue
                rate = 2 * k * n / seconds
                self.note(**facts, library=library, us=1e6 * seconds, rate=rate)
        if self._device.type == "cuda":
            torch.backends.cuda.preferred_blas_library("default")

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _compile_key(case: Case, tile: TileSizes) -> tuple[object, ...]:
    return case.kind, case.head_size, case.group, replace(tile, waves=0)


def read_rate(cache: torch.Tensor) -> float:
    """Bytes a second of a sum over the cache."""
    numbers = cache.view(torch.float32).view(-1)
    numbers.sum()
    return numbers.nbytes / seconds_per_call([numbers.sum], cache.device)
