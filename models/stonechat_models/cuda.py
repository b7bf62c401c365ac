"""What only a CUDA device has: graph capture, and a profile of what a step needs.

Written against PyTorch's documentation; see docs/gpu.md for what has been run.
"""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from stonechat_models.cuda_graphs import GraphedModel, Step
from stonechat_models.errors import ModelLoadError
from stonechat_models.forward_batch import CausalModel, ForwardBatch
from stonechat_models.sampling_state import SamplingState
from stonechat_models.types import SamplingParams

if TYPE_CHECKING:
    from stonechat_models.engine import SamplerLike

WARMUP_RUNS = 2


class CudaCapturer:
    """Captures steps into graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def capture(self, step: Step) -> Step:
        """See `Capturer`. Kernels are compiled and libraries set up by runs before the capture."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARMUP_RUNS):
                step()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def with_cuda_graphs(
    model: CausalModel, device: torch.device, progress: Callable[[str], None]
) -> CausalModel:
    """The model with its decode steps captured, or as it was when it cannot be captured."""
    graphed = GraphedModel(model, device)
    with torch.cuda.device(device):
        gc.collect()
        graphed.capture(CudaCapturer(device), progress)
    return graphed


def largest_batch(
    num_tokens: int, num_seqs: int, max_model_len: int, block_size: int
) -> ForwardBatch:
    """A prefill of as many tokens and sequences as a step may have; every sequence needs logits.

    On the CPU. Its blocks are the first `sum(ceil(length / block_size))` ones.
    """
    num_seqs = min(num_seqs, num_tokens)
    share, rest = divmod(num_tokens, num_seqs)
    lengths = [min(share + (i < rest), max_model_len) for i in range(num_seqs)]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    widths = [-(-length // block_size) for length in lengths]
    table = torch.zeros(num_seqs, max(widths), dtype=torch.int32)
    first_block, slots, positions = 0, [], []
    for i, (length, width) in enumerate(zip(lengths, widths, strict=True)):
        table[i, :width] = torch.arange(first_block, first_block + width)
        positions.append(torch.arange(length))
        slots.append(first_block * block_size + positions[i])
        first_block += width
    return ForwardBatch(
        token_ids=torch.zeros(starts[-1], dtype=torch.int64),
        positions=torch.cat(positions),
        slot_mapping=torch.cat(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=table,
        logits_index=torch.tensor(starts[1:]) - 1,
        query_start_list=starts,
        context_lens_list=lengths,
    )


@torch.inference_mode()
def step_memory(
    model: CausalModel,
    sampler: "SamplerLike",
    device: torch.device,
    *,
    max_model_len: int,
    max_batch_tokens: int,
    max_num_seqs: int,
    block_size: int,
) -> int:
    """Bytes that the largest step needs beside weights and KV cache, found by running it.

    Leaves a small KV cache behind, which the next `allocate_kv_cache` replaces. Raises
    `ModelLoadError` when not even one such step fits.
    """
    batch = largest_batch(max_batch_tokens, max_num_seqs, max_model_len, block_size)
    num_blocks = sum(-(-length // block_size) for length in batch.context_lens_list)
    params = SamplingParams(top_p=0.9, top_logprobs=20)
    states = [SamplingState(params, i, 0, []) for i in range(batch.num_seqs)]
    free, _ = torch.cuda.mem_get_info(device)
    try:
        model.allocate_kv_cache(num_blocks, block_size)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        sampler(model.forward(batch.to(device)), states)
        peak = torch.cuda.max_memory_allocated(device)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"a step of {batch.num_tokens} tokens and {batch.num_seqs} sequences does not fit the "
            f"{free / 2**20:.0f} MiB that are free on {device}: lower --max-batch-tokens or "
            "--max-num-seqs"
        ) from error
    torch.cuda.empty_cache()
    return peak - before
