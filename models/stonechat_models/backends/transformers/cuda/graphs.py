"""Steps as CUDA graphs. A step replays the graph of the smallest shape that it fits in.

There are graphs of decode steps, by the number of sequences, and of mixed steps (with prompts or
draft tokens), by tokens and sequences. A captured step reads only static buffers, and each step
copies its inputs there. The capturer is passed in, so that everything else runs on any device.
Before a graph is used, its replay is compared with the captured step on a few sequences.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from stonechat_models.backends.base import (
    CausalModel,
    ForwardBatch,
    MediaModel,
    StatefulModel,
)
from stonechat_models.backends.transformers.cuda.parity_steps import (
    last_tokens,
    mixed_step,
    parity_sequences,
)
from stonechat_models.backends.transformers.cuda.static_buffers import (
    StaticBuffers,
    StepShape,
    captured_shapes,
)
from stonechat_models.backends.transformers.verify import (
    TOLERANCE,
    logits_error,
    relative_error,
)
from stonechat_models.media.features import MediaFeatures
from stonechat_models.model_info import ModelInfo
from stonechat_models.types import MediaInput

logger = logging.getLogger(__name__)

Forward = Callable[[], torch.Tensor]
Fill = Callable[[StaticBuffers, ForwardBatch, StepShape], None]


class Capturer(Protocol):
    """Turns a step into a function that repeats it on the same memory."""

    def capture(self, step: Forward) -> Forward:
        """Run `step` now, and return a function that repeats its kernels.

        The function returns the same memory each time. Raises if the step cannot be captured.
        """


class GraphedModel:
    """A model whose steps replay CUDA graphs. Steps that fit in no graph run without one.

    The model's KV cache must be allocated, with one more block than `info.num_blocks`, and one more
    recurrent state than `info.num_state_slots`. Unless it packs prompts, only decode steps have
    graphs.
    """

    def __init__(self, model: CausalModel, device: torch.device) -> None:
        info = model.info
        self.model = model
        self.info: ModelInfo = info
        self._device = device
        shapes = captured_shapes(
            info.attention_backend,
            info.max_num_seqs,
            info.max_batch_tokens,
            packs_prompts=info.packs_prompts,
        )
        self._decode_shapes = [shape for shape in shapes if shape.is_decode]
        self._mixed_shapes = [shape for shape in shapes if not shape.is_decode]
        width = -(-info.max_model_len // info.block_size)
        padding_slot = info.num_blocks * info.block_size
        self._buffers = StaticBuffers.allocate(
            shapes, width, padding_slot, info.vocab_size, device, info.num_state_slots
        )
        self._graphs: dict[StepShape, Forward] = {}
        self._fill: Fill = StaticBuffers.fill

    @property
    def hidden_size(self) -> int:
        return self.model.hidden_size

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        raise RuntimeError("the CUDA graphs read the present KV cache, so it cannot be replaced")

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        self.model.copy_blocks(pairs)

    def copy_states(self, pairs: list[tuple[int, int]]) -> None:
        cast(StatefulModel, self.model).copy_states(pairs)

    def free_states(self, slots: list[int]) -> None:
        cast(StatefulModel, self.model).free_states(slots)

    def capture(self, capturer: Capturer, progress: Callable[[str], None]) -> None:
        """Capture and check a graph for every shape. Overwrites the KV cache and all states.

        The largest shape comes first, since it sizes the memory that all graphs share. A graph that
        returns other logits is dropped. If a graph of mixed steps cannot be captured, or all are
        dropped, these run without graphs. If that happens to decode steps, all do. `progress` gets
        the reason.
        """
        started = time.perf_counter()
        progress(f"capturing CUDA graphs for up to {self.info.max_num_seqs} sequences")
        self._choose_fill(progress)
        reason_of_mixed = self._capture_shapes(self._mixed_shapes, capturer)
        reason = self._capture_shapes(self._decode_shapes, capturer)
        if reason is not None:
            self._graphs.clear()
            progress(f"running without CUDA graphs: {reason}")
            return
        if reason_of_mixed is not None:
            progress(f"running steps with prompts without CUDA graphs: {reason_of_mixed}")
        if not self.info.packs_prompts:  # it computes prompts one by one, then all that decode
            cast(Any, self.model).replay = self.forward
        seconds = time.perf_counter() - started
        progress(f"captured {len(self._graphs)} CUDA graphs in {seconds:.1f} s, and checked them")

    @torch.inference_mode()
    def _choose_fill(self, progress: Callable[[str], None]) -> None:
        """Fill the static buffers by one kernel on CUDA. `progress` gets the reason if it fails."""
        if self._device.type != "cuda":
            return
        try:
            from stonechat_models.backends.transformers.cuda.fill_kernel import (
                fill_in_one_launch,
                fills_right,
            )

            sequences = parity_sequences(self.info).to(self._device)
            shape = self._decode_shapes[-1]
            cases = [(last_tokens(sequences, shape.seqs // 2 + 1), shape)]
            cases += [(mixed_step(sequences, s), s) for s in self._mixed_shapes[:1]]
            if not all(fills_right(self._buffers, *case) for case in cases):
                raise RuntimeError("the kernel copies other numbers")
            self._fill = fill_in_one_launch
        except Exception as error:  # with_cuda_graphs checks that the device still works
            logger.warning("the kernel that fills the static buffers failed", exc_info=error)
            progress(f"copying the inputs of CUDA graphs one by one: {_first_line(error)}")

    def _capture_shapes(self, shapes: Sequence[StepShape], capturer: Capturer) -> str | None:
        """Capture and check the graphs of these shapes. Return why there are none; None: all are
        there."""
        try:
            if shapes:
                self._match_dtype(shapes[0])
            for shape in reversed(shapes):
                self._graphs[shape] = capturer.capture(self._step(shape))
            self._check(shapes)
        except Exception as error:  # after any error, steps can still run without graphs
            logger.warning("capturing failed", exc_info=error)
            for shape in shapes:
                self._graphs.pop(shape, None)
            return _first_line(error)
        return None

    @torch.inference_mode()
    def _match_dtype(self, shape: StepShape) -> None:
        """Give the output of all graphs the dtype in which the model returns logits."""
        self._buffers.clear(shape)
        logits = self.model.forward(self._buffers.view(shape, self.info.block_size))
        self._buffers.logits = self._buffers.logits.to(logits.dtype)

    def _step(self, shape: StepShape) -> Forward:
        """The step to capture. At first, the static buffers have only padding for it."""
        self._buffers.clear(shape)
        batch = self._buffers.view(shape, self.info.block_size)
        logits, forward = self._buffers.logits[: shape.rows], self.model.forward
        return lambda: logits.copy_(forward(batch))

    @torch.inference_mode()
    def _check(self, shapes: Sequence[StepShape]) -> None:
        """Drop the graphs whose replays differ from the same step without a graph.

        Larger ones take their steps. Raises `RuntimeError` if all differ, or if padded steps differ
        from the same steps without padding. There the median row decides: rounding may differ
        between shapes, and a router may then choose other experts in single rows.
        """
        tolerance = TOLERANCE["logits"].get(getattr(torch, self.info.dtype), 0.25)
        sequences = parity_sequences(self.info).to(self._device)
        self.model.forward(sequences)
        begin = _Beginning(self.model, sequences.num_seqs)
        padding_differences = []
        previous_size = 0
        for shape in shapes:
            if shape.is_decode:
                batch = last_tokens(sequences, previous_size + 1)
                previous_size = shape.seqs
            else:
                batch = mixed_step(sequences, shape)
            try:
                actual = self._checked_replay(shape, batch, begin, tolerance)
            except RuntimeError as error:
                logger.warning("%s", error)
                del self._graphs[shape]
                if not self._graphs.keys() & set(shapes):
                    raise
                continue
            begin.restore(batch.num_seqs)
            padding_differences.append(logits_error(self.model.forward(batch), actual))
        typical = float(torch.cat(padding_differences).median()) if shapes else 0.0
        if not typical <= tolerance:
            kind = "decode" if shapes[0].is_decode else "mixed"
            raise RuntimeError(
                f"padded {kind} steps give logits that are off by {typical:.2g} standard "
                f"deviations; rounding explains {tolerance:g} at most"
            )

    def _checked_replay(
        self, shape: StepShape, batch: ForwardBatch, begin: "_Beginning", tolerance: float
    ) -> torch.Tensor:
        """Return the logits of a replay. Raises `RuntimeError` if those without a graph differ."""
        num_rows, num_seqs = len(batch.logits_index), batch.num_seqs
        view = self._buffers.view(shape, self.info.block_size)
        self._fill(self._buffers, batch, shape)
        begin.restore(num_seqs)
        actual = self._graphs[shape]()[:num_rows].clone()
        states = begin.present()
        begin.restore(num_seqs)
        expected = self.model.forward(view)[:num_rows]
        begin.refuse_other(states, tolerance)
        difference = float(logits_error(expected, actual).max())
        begin.restore(num_seqs)
        if difference > tolerance and difference > 2 * self._noise(view, expected):
            raise RuntimeError(
                f"the graph for {shape} gives logits that are off by {difference:.2g} "
                f"standard deviations; rounding explains {tolerance:g} at most"
            )
        return actual

    def _noise(self, view: ForwardBatch, logits: torch.Tensor) -> float:
        """How much a step without a graph differs from itself when it runs again.

        Kernels that add in any order cause such differences. Returns 0 if it is not finite.
        """
        noise = float(logits_error(logits, self.model.forward(view)[: len(logits)]).max())
        return noise if math.isfinite(noise) else 0.0

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """As in `CausalModel`, but each step overwrites the logits of the one before."""
        shape = self._shape_of(batch)
        if shape is None:
            logits: torch.Tensor = self.model.forward(batch)
            return logits
        self._fill(self._buffers, batch, shape)
        return self._graphs[shape]()[: len(batch.logits_index)]

    def _shape_of(self, batch: ForwardBatch) -> StepShape | None:
        """The smallest captured shape that a step fits in. Graphs compute no adapters or media."""
        if batch.adapters or batch.media is not None:
            return None
        is_decode = batch.num_tokens == batch.num_seqs == len(batch.logits_index)
        if self.info.keeps_state and min(batch.context_lens_list) == 1:
            is_decode = False  # a sequence that begins has no state yet
        shapes = self._decode_shapes if is_decode else self._mixed_shapes
        return next((s for s in shapes if s.fits(batch) and s in self._graphs), None)

    def forward_hidden(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.forward_hidden(batch)

    def encode_media(self, medium: MediaInput) -> MediaFeatures:
        return cast(MediaModel, self.model).encode_media(medium)

    def media_positions(
        self, token_ids: Sequence[int], media: Sequence[MediaInput]
    ) -> tuple[npt.NDArray[np.int64], int]:
        return cast(MediaModel, self.model).media_positions(token_ids, media)


class _Beginning:
    """The recurrent states with which the steps of a check begin: sequence i has that in slot i.

    They are the present states of the first `num_states` slots, again and again.
    """

    def __init__(self, model: CausalModel, num_states: int) -> None:
        self._model: Any = model
        self._num_states = num_states
        self._states = self.present()

    def present(self) -> list[torch.Tensor]:
        """Copies of the states in these slots as they are now; none for a model without states."""
        if not self._model.info.keeps_state:
            return []
        states: list[torch.Tensor] = self._model.read_states(self._num_states)
        return states

    def restore(self, num_seqs: int) -> None:
        """Give the sequences of a step these states. A step changes them."""
        if self._states:
            self._model.write_states(self._states, num_seqs)

    def refuse_other(self, states: list[torch.Tensor], tolerance: float) -> None:
        """Raise `RuntimeError` if the step before has left other states than `states`."""
        for expected, actual in zip(self.present(), states, strict=True):
            largest = float(expected.abs().max()) or 1.0
            error = float(relative_error(expected.float(), actual.float(), largest).max())
            if error > tolerance:
                raise RuntimeError(f"a graph leaves recurrent states that are off by {error:.2g}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
