"""Time the native backend alone: no scheduler, sampler or HTTP.

Measures decoding at several batch sizes, the prefill of one prompt, the time of each part of a
step, and the share of the memory bandwidth that reading the weights reaches at batch 1. Example:

    python scripts/bench/native.py --context 200 3900 --threads 2
"""

import argparse
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np

from stonechat_models.backends.base import HostBatch
from stonechat_models.backends.native import NativeModel, supports
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.bandwidth import measure_bandwidth

BLOCK_SIZE = 16
PREFILL_CHUNK = 512

Span = tuple[int, int, int]
"""(sequence, first position, number of tokens)"""


class Bench:
    """Runs steps for sequences that each own `width` consecutive blocks.

    They share the blocks of their first `shared` tokens, which belong to the first sequence.
    """

    def __init__(self, model: NativeModel, num_seqs: int, num_tokens: int, shared: int = 0) -> None:
        self.model = model
        self.width = -(-num_tokens // BLOCK_SIZE)
        self.num_shared = shared // BLOCK_SIZE
        model.info = replace(model.info, num_state_slots=num_seqs)
        model.allocate_kv_cache(num_seqs * self.width, BLOCK_SIZE)

    def batch(self, spans: list[Span]) -> HostBatch:
        positions = np.concatenate([np.arange(first, first + n) for _, first, n in spans])
        owner = np.concatenate([np.full(n, sequence) for sequence, _, n in spans])
        starts = np.cumsum([0, *(n for _, _, n in spans)])
        table = np.arange(self.width) + self.width * np.array([[s] for s, _, _ in spans])
        table[:, : self.num_shared] = np.arange(self.num_shared)
        return HostBatch(
            token_ids=array("q", (positions * 7919 + owner * 31) % self.model.info.vocab_size),
            positions=array("q", positions),
            slot_mapping=array("q", owner * self.width * BLOCK_SIZE + positions),
            query_start=array("i", starts),
            block_table=array("i", table.flatten()),
            logits_index=array("q", starts[1:] - 1),
            state_slots=array("q", [sequence for sequence, _, _ in spans]),
        )

    def copied(self, sequence: int, num_tokens: int) -> None:
        """Give a sequence copies of its first chunk's keys and values, which takes no time."""
        self.prefill(sequence, PREFILL_CHUNK)
        first, size = sequence * self.width, PREFILL_CHUNK // BLOCK_SIZE
        count = -(-num_tokens // BLOCK_SIZE)
        self.model.copy_blocks([(first + i % size, first + i) for i in range(size, count)])

    def prefill(self, sequence: int, num_tokens: int) -> None:
        begin = self.num_shared * BLOCK_SIZE if sequence else 0
        for first in range(begin, num_tokens, PREFILL_CHUNK):
            size = min(PREFILL_CHUNK, num_tokens - first)
            self.model.forward(self.batch([(sequence, first, size)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--quantize", default="auto", choices=("auto", "none", "int8", "int4"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[200])
    parser.add_argument("--shared", type=int, default=0, help="tokens that all sequences share")
    parser.add_argument("--prefill", type=int, nargs="*", default=[1000])
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "bfloat16", "int8"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--copied", action="store_true", help="fill contexts with copies of their first chunk"
    )
    parser.add_argument(
        "--chunk-at", type=int, nargs="*", default=[], help="time a chunk of a prompt from there on"
    )
    arguments = parser.parse_args()
    config = EngineConfig(
        model=arguments.model,
        device="cpu",
        quantize=arguments.quantize,
        threads=arguments.threads,
        kv_cache_dtype=arguments.kv_cache_dtype,
    )
    files = resolve_model(config, report)
    reason = supports(files, config, report)
    if reason is not None:
        sys.exit(f"the native backend cannot run this: {reason}")
    started = time.perf_counter()
    model = NativeModel.load(files, config, report)
    info = model.info
    print(
        f"{info.name}, {info.quantization}, {info.attention_backend}, {info.threads} threads, "
        f"{info.weight_bytes / 1e6:.0f} MB, loaded in {time.perf_counter() - started:.2f} s"
    )
    for context, num_seqs in product(arguments.context, arguments.batch):
        measure_decoding(model, context, num_seqs, arguments)
    for count in arguments.prefill:
        measure_prefill(model, count)
    for first in arguments.chunk_at:
        measure_chunk(model, first)


def measure_decoding(
    model: NativeModel, context: int, num_seqs: int, arguments: argparse.Namespace
) -> None:
    bench = Bench(model, num_seqs, context + arguments.steps, arguments.shared)
    for sequence in range(num_seqs):
        (bench.copied if arguments.copied else bench.prefill)(sequence, context)

    def step(i: int) -> None:
        model.forward(bench.batch([(s, context + i, 1) for s in range(num_seqs)]))

    seconds = show(f"decode {num_seqs} at {context}", model, num_seqs, arguments.steps, step)
    if num_seqs == 1:
        bandwidth = measure_bandwidth()
        read = model.info.weight_bytes + context * model.info.kv_bytes_per_token
        print(
            f"  reads weights and cache at {read / seconds / bandwidth:.0%} of the memory's "
            f"{bandwidth / 1e9:.1f} GB/s"
        )


def measure_prefill(model: NativeModel, count: int) -> None:
    bench = Bench(model, 1, count)
    show(f"prefill {count}", model, count, 3, lambda _: bench.prefill(0, count))


def measure_chunk(model: NativeModel, first: int) -> None:
    bench = Bench(model, 1, first + PREFILL_CHUNK)
    bench.copied(0, first)
    batch = bench.batch([(0, first, PREFILL_CHUNK)])
    name = f"chunk of {PREFILL_CHUNK} at {first}"
    show(name, model, PREFILL_CHUNK, 3, lambda _: model.forward(batch))


def show(
    name: str, model: NativeModel, num_tokens: int, repeats: int, run: Callable[[int], object]
) -> float:
    """Print the median time, tokens a second, and each part's mean time. Return the median in s."""
    times, before = [], model.part_seconds()
    for i in range(repeats):
        started = time.perf_counter()
        run(i)
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    parts = {k: v - before[k] for k, v in model.part_seconds().items()}
    print(
        f"{name}: median {median * 1e3:.2f} ms, fastest {min(times) * 1e3:.2f} ms, "
        f"{num_tokens / median:.0f} tokens/s"
    )
    mean = " ".join(f"{k} {v / repeats * 1e3:.2f}" for k, v in parts.items())
    print(f"  mean ms: {mean}")
    return median


def report(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
