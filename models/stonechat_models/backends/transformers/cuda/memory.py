"""Graph capture on a CUDA device, and a measurement of the memory that a step needs there."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch

from stonechat_models.backends.base import CausalModel, ForwardBatch, MediaModel
from stonechat_models.backends.transformers.cuda.graphs import Forward, GraphedModel
from stonechat_models.backends.transformers.cuda.static_buffers import (
    StaticBuffers,
    StepShape,
    captured_shapes,
)
from stonechat_models.backends.transformers.verify import random_batch
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_info import ModelInfo, size_text
from stonechat_models.sampling.logprobs import Logprobs
from stonechat_models.sampling.state import SamplerLike, SamplingState
from stonechat_models.types import MAX_TOP_LOGPROBS, MediaInput, SamplingParams

logger = logging.getLogger(__name__)

GRAPH_BYTES = 16 << 20
"""Driver memory per graph, in addition to its tensors; a generous estimate."""


class CudaCapturer:
    """Captures steps into graphs that share one memory pool.

    They may share it because they run one after the other on one stream, and the output of a replay
    is read before the next replay. Only the outputs have separate memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def capture(self, step: Forward) -> Forward:
        """See `Capturer`.

        A first run compiles kernels and sets up libraries on the capture's stream. A second run
        raises if the step waits for the device: after a wait inside a capture, recovery is harder.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            step()
            with _raise_on_wait():
                step()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may allocate meanwhile; that does no harm here.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


@contextmanager
def _raise_on_wait() -> Iterator[None]:
    """Inside, PyTorch raises `RuntimeError` if an operator waits for the device."""
    previous_mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns once that it does not notice every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(previous_mode)


def with_cuda_graphs(
    model: CausalModel, device: torch.device, progress: Callable[[str], None]
) -> CausalModel:
    """The model with its steps captured, or running without graphs if that fails.

    Raises `ModelLoadError` if the device no longer works after the attempt.
    """
    with torch.cuda.device(device):
        gc.collect()
        free_before, _ = torch.cuda.mem_get_info(device)
        graphed_model = GraphedModel(model, device)
        graphed_model.capture(CudaCapturer(device), progress)
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise ModelLoadError(
                f"{device} failed while CUDA graphs were captured ({error}); "
                "use --eager to start without graphs"
            ) from error
        torch.cuda.empty_cache()
        num_bytes = free_before - torch.cuda.mem_get_info(device)[0]
    logger.info("the CUDA graphs use %s", size_text(num_bytes))
    return graphed_model


def largest_batch(
    num_tokens: int, num_seqs: int, max_model_len: int, block_size: int
) -> ForwardBatch:
    """A prefill of as many tokens and sequences as a step may have. Every sequence needs logits.

    The batch is on the CPU. It uses the first `sum(ceil(length / block_size))` blocks.
    """
    num_seqs = min(num_seqs, num_tokens)
    share, remainder = divmod(num_tokens, num_seqs)
    lengths = [min(share + (i < remainder), max_model_len) for i in range(num_seqs)]
    return random_batch([(length, length) for length in lengths], block_size)


@torch.inference_mode()
def step_memory(
    model: CausalModel, sampler: SamplerLike, device: torch.device, *, graphs: bool = False
) -> int:
    """Bytes that steps need in addition to weights and KV cache, measured on the largest step.

    The limits in `model.info` say how large it is. It has as many rows of logits as sampling and
    log-probabilities of prompts may need. With `graphs` this includes what the CUDA graphs keep.
    Leaves a KV cache of one block, which the next `allocate_kv_cache` replaces. Raises
    `ModelLoadError` if not even one such step fits.
    """
    gc.collect()  # it may be switched off, and what is left of a load may hold memory
    info, block_size = model.info, model.info.block_size
    num_seqs = info.max_num_seqs if info.packs_prompts else 1
    batch = largest_batch(info.max_batch_tokens, num_seqs, info.max_model_len, block_size)
    batch = _with_most_rows(batch, info)
    if info.keeps_state:  # all share one, since many may take more memory than is free
        model.info = replace(info, num_state_slots=1)
        shared = torch.zeros(batch.num_seqs, dtype=torch.int64)
        batch = replace(batch, state_slots=shared.tolist(), state_index=shared)
    num_blocks = sum(-(-length // block_size) for length in batch.context_lens_list)
    # Edits of rows with log-probabilities keep these rows a second time.
    params = SamplingParams(top_p=0.9, top_logprobs=MAX_TOP_LOGPROBS, repetition_penalty=1.1)
    states = [SamplingState(params, i, 0, []) for i in range(batch.num_seqs)]
    free, _ = torch.cuda.mem_get_info(device)
    flags = "--max-batch-tokens or --max-num-seqs"
    if not info.exact_chunks:
        flags = "--max-model-len, since this model computes a prompt in one piece"
    try:
        model.allocate_kv_cache(num_blocks, block_size)
        on_device = batch.to(device)
        needed = _peak(lambda: _run_step(model, sampler, on_device, states), device)
        if graphs:
            shapes = captured_shapes(
                info.attention_backend,
                info.max_num_seqs,
                info.max_batch_tokens,
                packs_prompts=info.packs_prompts,
            )
            buffers = StaticBuffers.allocate(
                shapes,
                -(-info.max_model_len // block_size),
                num_blocks * block_size,
                info.vocab_size,
                device,
                model.info.num_state_slots,
            )
            needed += _graph_memory(model, device, shapes, buffers, block_size)
            del buffers
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"a step of {batch.num_tokens} tokens and {batch.num_seqs} sequences does not fit "
            f"in the {size_text(free)} that are free on {device}: lower {flags}"
        ) from error
    model.allocate_kv_cache(1, block_size)
    torch.cuda.empty_cache()
    if not info.packs_prompts:  # a step that decodes for all: states before and after, logits
        copied = getattr(model, "copied_state_bytes", info.state_bytes)
        needed += info.max_num_seqs * (2 * copied + 8 * info.vocab_size)
    needed += info.state_bytes  # that of padding
    return needed


def _with_most_rows(batch: ForwardBatch, info: ModelInfo) -> ForwardBatch:
    """The batch with as many rows of logits as sampling and scores of prompts may need."""
    num_prompt_rows = min(info.max_prompt_rows, batch.num_tokens - batch.num_seqs)
    num_rows = num_prompt_rows + batch.num_seqs
    first_row = batch.num_tokens - num_rows
    return replace(
        batch,
        logits_index=torch.arange(batch.num_tokens)[-num_rows:],
        num_rows_list=[
            max(0, end - max(start, first_row)) for start, end in pairwise(batch.query_start_list)
        ],
        adapters=_most_adapter_rows(batch.num_seqs) if info.adapters else (),
    )


@torch.inference_mode()
def tower_memory(
    model: MediaModel, medium: MediaInput, device: torch.device, name: str = "a large image"
) -> int:
    """Bytes that encoding a medium needs in addition to the weights, measured.

    Raises `UnsupportedModelError` if it does not fit.
    """
    try:
        return _peak(lambda: model.encode_media(medium), device)
    except torch.OutOfMemoryError as error:
        free, _ = torch.cuda.mem_get_info(device)
        raise UnsupportedModelError(
            f"its tower needs more than the {size_text(free)} that are free on {device} for {name}"
        ) from error
    finally:
        torch.cuda.empty_cache()


def _most_adapter_rows(num_seqs: int) -> list[int]:
    """The adapter of each sequence in a step whose adapter takes the most memory: nearly all rows
    are its own, and they do not lie together."""
    adapters = [0] * num_seqs
    if num_seqs > 2:
        adapters[num_seqs // 2] = -1
    return adapters


def _run_step(
    model: CausalModel, sampler: SamplerLike, batch: ForwardBatch, states: list[SamplingState]
) -> None:
    """Run a step as the engine does. All rows of logits but the last are those of prompts."""
    logits = model.forward(batch)
    num_rows = len(logits) - len(states)
    if num_rows:
        Logprobs(logits, range(num_rows), [0] * num_rows, [MAX_TOP_LOGPROBS] * num_rows)
        logits = logits[num_rows:].clone()
    sampler(logits, states)


def _graph_memory(
    model: CausalModel,
    device: torch.device,
    shapes: Sequence[StepShape],
    buffers: StaticBuffers,
    block_size: int,
) -> int:
    """Bytes that the graphs of all shapes keep. They share the memory of the largest step."""
    shared = 0
    most_tokens = max(shapes, key=lambda shape: (shape.tokens, shape.rows))
    most_rows = max(shapes, key=lambda shape: (shape.rows, shape.tokens))
    for shape in {most_tokens, most_rows}:
        buffers.clear(shape)
        step = partial(model.forward, buffers.view(shape, block_size))
        shared = max(shared, _peak(step, device))
    return shared + buffers.num_bytes + len(shapes) * GRAPH_BYTES


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes allocated at a time while `run` runs, in addition to those allocated before."""
    torch.cuda.reset_peak_memory_stats(device)
    allocated_before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - allocated_before
