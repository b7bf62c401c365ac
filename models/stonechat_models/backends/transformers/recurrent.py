"""Runs models whose layers keep a recurrent state: linear attention, state spaces, convolutions.

Attention layers use the paged KV cache, as in `TransformersModel`. The other layers get their state
through transformers' cache interface, from a pool with one slot per sequence. If each of them is a
`SlotMixer` that packs prompts, a step is one call with packed tokens.

Other layers cannot pack states. A step of theirs consists of several calls: one for all sequences
that decode, [N, 1] tokens, and one for each prompt or part of a prompt, [1, T] tokens. A step that
only decodes reads no number on the host, so it can be captured as a CUDA graph.
"""

import inspect
from collections.abc import Callable, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.backends.transformers.attention.backend import AttentionBackend
from stonechat_models.backends.transformers.attention.interface import (
    ATTENTION_NAME,
    PagedContext,
    ProbeContext,
    register_attention,
)
from stonechat_models.backends.transformers.cache_argument import cache_argument
from stonechat_models.backends.transformers.head_tap import HeadTap
from stonechat_models.backends.transformers.media_rows import media_rows
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.slot_states import SlotMixer, StepSequences
from stonechat_models.errors import EngineError, ModelLoadError, UnsupportedModelError
from stonechat_models.hardware.device import as_current_device
from stonechat_models.hardware.transfers import to_device
from stonechat_models.model_info import ModelInfo, size_text

StateKind = Literal["conv_states", "recurrent_states"]
STATE_KINDS: tuple[StateKind, ...] = ("conv_states", "recurrent_states")
PROBE_LENGTH = 8


class PagedLayer(DynamicLayer):  # type: ignore[misc]
    """The cache of an attention layer. Its keys and values are in the paged cache, not here."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self._num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._num_tokens + query_length, 0


class HybridLayer(LinearAttentionLayer, PagedLayer):  # type: ignore[misc]
    """The cache of a layer that has both attention and a recurrent state."""

    def __init__(self, number_of_states: int, num_tokens: int) -> None:
        PagedLayer.__init__(self, num_tokens)
        LinearAttentionLayer.__init__(self, number_of_states)


@dataclass(frozen=True, slots=True)
class StateShape:
    """One tensor of recurrent state, without its first dimension, which is the sequence."""

    layer: int
    kind: StateKind
    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StatePool:
    """The recurrent states of all slots: per state a tensor [num_slots + 1, ...].

    The last slot is for padding rows of a CUDA graph.
    """

    def __init__(self, shapes: Sequence[StateShape], num_slots: int) -> None:
        self._shapes = shapes
        try:
            self._tensors = [
                torch.zeros((num_slots + 1, *s.shape), dtype=s.dtype, device=s.device)
                for s in shapes
            ]
        except (RuntimeError, MemoryError) as error:
            needed = sum(s.num_bytes for s in shapes) * (num_slots + 1)
            raise ModelLoadError(
                f"no memory for {num_slots} recurrent states, {size_text(needed)}: {error}"
            ) from error

    def load(
        self, cache: Cache, sequences: StepSequences, in_place: Set[int], *, has_past: bool
    ) -> None:
        """Give the layers of `cache` copies of the sequences' states, unless they begin.

        The layers `in_place` get the states themselves, of all slots, and the sequences.
        """
        rows = self._rows(sequences.slots)
        for shape, tensor in zip(self._shapes, self._tensors, strict=True):
            layer: Any = cache.layers[shape.layer]
            if shape.layer in in_place:
                state, layer.sequences = tensor, sequences
            elif has_past:
                state = tensor[rows[tensor.device]]
            else:
                continue
            getattr(layer, shape.kind)[shape.index] = state
            getattr(layer, f"is_{shape.kind}_initialized")[shape.index] = True
            layer.has_previous_state[shape.index] = True
            layer.dtype, layer.device = state.dtype, state.device
            if shape.kind == "conv_states":
                layer.conv_kernel_size[shape.index] = state.shape[-1]

    def store(self, cache: Cache, slots: torch.Tensor, in_place: Set[int]) -> None:
        """Keep the states of the layers of `cache` in `slots`, except for those `in_place`."""
        rows = self._rows(slots)
        for shape, tensor in zip(self._shapes, self._tensors, strict=True):
            if shape.layer in in_place:
                continue
            state = getattr(cache.layers[shape.layer], shape.kind)[shape.index]
            tensor.index_copy_(0, rows[tensor.device], state)

    def _rows(self, slots: torch.Tensor) -> dict[torch.device, torch.Tensor]:
        """The slots on each device that has states."""
        devices = {tensor.device for tensor in self._tensors}
        return {device: slots.to(device) for device in devices}

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy states, (source, destination), one after the other."""
        for tensor in self._tensors:
            for source, destination in pairs:
                tensor[destination] = tensor[source]

    def read(self, num_slots: int) -> list[torch.Tensor]:
        """Return copies of the states in the first slots."""
        return [tensor[:num_slots].clone() for tensor in self._tensors]

    def write(self, states: Sequence[torch.Tensor], num_slots: int) -> None:
        """Write states to the first slots. If there are more slots than states, these repeat."""
        for tensor, copies in zip(self._tensors, states, strict=True):
            index = torch.arange(num_slots, device=copies.device) % len(copies)
            torch.index_select(copies, 0, index, out=tensor[:num_slots])  # takes no more memory


def new_cache(module: torch.nn.Module, num_tokens: int) -> Cache:
    """Return an empty cache for one call, whose sequences have `num_tokens` tokens before it."""
    layers: list[Any] = DynamicCache(config=module.config.get_text_config()).layers  # type: ignore
    for i, layer in enumerate(layers):
        is_recurrent = isinstance(layer, LinearAttentionCacheLayerMixin)
        if is_recurrent and isinstance(layer, CacheLayerMixin):
            layers[i] = HybridLayer(layer.number_of_states, num_tokens)
        elif isinstance(layer, CacheLayerMixin):
            layers[i] = PagedLayer(num_tokens)
    return Cache(layers=layers)


def keeps_recurrent_state(module: torch.nn.Module) -> bool:
    """Whether any layer of `module` keeps a recurrent state in transformers' cache.

    Raises `UnsupportedModelError` for layers that keep there what no cache of ours has a place for.
    """
    try:
        cache = DynamicCache(config=module.config.get_text_config())  # type: ignore[operator, union-attr]
    except Exception:  # a config that the cache cannot read
        return False
    for layer in cache.layers:
        is_usual = type(layer).__module__ == DynamicLayer.__module__
        if not is_usual or isinstance(layer, DynamicIndexedLayer):
            raise UnsupportedModelError("its layers keep more than keys and values")
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


class RecurrentModel(TransformersModel):
    """A `CausalModel` with recurrent layers. `check_steps` must pass before it is used."""

    def __init__(
        self,
        module: torch.nn.Module,
        info: ModelInfo,
        backend: AttentionBackend,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Raises `UnsupportedModelError` if the module does not run in this way."""
        probe = ProbeContext([0, PROBE_LENGTH])
        self._shapes = probe_states(module, probe)
        mixers = [part for part in module.modules() if isinstance(part, SlotMixer)]
        self._decoding_in_place = {mixer.layer_idx for mixer in mixers if mixer.decodes}
        self._packing_in_place = {mixer.layer_idx for mixer in mixers if mixer.packs_prompts}
        info = replace(
            info,
            keeps_state=True,
            packs_prompts=all(shape.layer in self._packing_in_place for shape in self._shapes),
            state_bytes=sum(s.num_bytes for s in self._shapes),
        )
        super().__init__(module, info, backend, probe=probe, kv_dtype=kv_dtype)
        self._states: StatePool | None = None
        self.replay: Callable[[ForwardBatch], torch.Tensor] | None = None
        """How the sequences of a step that decode are computed while others have prompts: by a CUDA
        graph. None: there is none."""

    @property
    def copied_state_bytes(self) -> int:
        """Bytes of a sequence's states that a decode step copies, instead of changing them where
        they lie."""
        return sum(s.num_bytes for s in self._shapes if s.layer not in self._decoding_in_place)

    def _in_place(self, batch: ForwardBatch) -> Set[int]:
        """The layers that change the states where they lie."""
        return self._decoding_in_place if batch.decodes_all else self._packing_in_place

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        super().allocate_kv_cache(num_blocks, block_size)
        self._states = StatePool(self._shapes, self.info.num_state_slots)

    def read_states(self, num_slots: int) -> list[torch.Tensor]:
        """Return copies of the states in the first slots."""
        assert self._states is not None
        return self._states.read(num_slots)

    def write_states(self, states: Sequence[torch.Tensor], num_slots: int) -> None:
        """Write states to the first slots. If there are more slots than states, these repeat."""
        assert self._states is not None
        self._states.write(states, num_slots)

    def copy_states(self, pairs: list[tuple[int, int]]) -> None:
        assert self._states is not None
        self._states.copy(pairs)

    def free_states(self, slots: list[int]) -> None:
        """The pool keeps its size."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        if self.info.packs_prompts:
            return super().forward(batch)
        return self._forward(batch, self.replay)

    def _logits(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        context: PagedContext,
        logits_to_keep: torch.Tensor | None,
    ) -> torch.Tensor:
        cache = new_cache(self.module, 0)
        self._load(cache, context.batch, has_past=True)
        rows = 0 if logits_to_keep is None else logits_to_keep  # 0: all
        tokens = token_ids.unsqueeze(0)
        return _call(self.module, tokens, positions.unsqueeze(-2), cache, context, rows)[0]

    def _load(self, cache: Cache, batch: ForwardBatch, *, has_past: bool) -> torch.Tensor:
        """Give `cache` the states of the sequences. Returns their slots, int64[N]."""
        assert self._states is not None
        slots = batch.state_index
        if slots is None:
            slots = to_device(list(batch.state_slots), self.device, torch.int64)
        sequences = StepSequences.of(batch, slots)
        self._states.load(cache, sequences, self._in_place(batch), has_past=has_past)
        return slots

    def forward_hidden(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        if self.info.packs_prompts:
            return super().forward_hidden(batch)
        with HeadTap(self.module) as tap:
            logits = self._forward(batch, None)
        parts = enumerate(_parts(batch))
        return logits, _in_order(batch, [tap.call(k)[:, -n:] for k, (_, n) in parts])

    @torch.inference_mode()
    def _forward(
        self, batch: ForwardBatch, replay: Callable[[ForwardBatch], torch.Tensor] | None
    ) -> torch.Tensor:
        with as_current_device(self.device):
            if batch.decodes_all and len(batch.logits_index) == batch.num_seqs:
                logits = self._run(batch, 1)[:, 0]
            else:
                calls = []
                for indices, num_rows in _parts(batch):
                    part = batch.select(indices)
                    if replay is not None and part.decodes_all:
                        calls.append(replay(part).unsqueeze(1))
                    else:
                        calls.append(self._run(part, num_rows))
                logits = _in_order(batch, calls)
            # On CUDA the sampler's kernels convert them, which spares a copy of all logits.
            return logits if self._is_on_cuda else logits.float()

    def _run(self, part: ForwardBatch, num_rows: int) -> torch.Tensor:
        """Run the sequences of one call, and keep their states.

        Returns the logits [N, R, V] of each one's last `num_rows` tokens.
        """
        assert self._states is not None
        assert self._cache is not None
        length = part.num_tokens // part.num_seqs
        start = part.context_lens_list[0] - length
        cache = new_cache(self.module, start)
        if self.adapter_rows is not None:  # the part has one sequence, or a token of each
            self.adapter_rows.set(part, head_reads_all=True)
        slots = self._load(cache, part, has_past=start > 0)
        media, positions = part.media, part.positions.view(-1, length)
        if media is not None and media.rope_positions is not None:
            positions = media.rope_positions.view(3, -1, length)
        has_rows = media is not None and len(media.rows)
        with media_rows(self.module, media) if media is not None and has_rows else nullcontext():
            logits = _call(
                self.module,
                part.token_ids.view(-1, length),
                positions,
                cache,
                PagedContext(part, self._cache, self.backend),
                num_rows,
            )
        self._states.store(cache, slots, self._in_place(part))
        return logits[:, -num_rows:]


def _parts(batch: ForwardBatch) -> list[tuple[list[int], int]]:
    """Return the sequences of each call of a step, and of how many last tokens it gives rows.

    Each prompt is a call of its own. All sequences that decode share the last call.
    """
    ends = batch.query_start_list
    decoding: list[int] = []
    parts: list[tuple[list[int], int]] = []
    for i in range(batch.num_seqs):
        if ends[i + 1] - ends[i] == 1 and batch.context_lens_list[i] > 1:
            decoding.append(i)
        else:
            parts.append(([i], max(1, batch.num_rows_list[i])))
    return [*parts, (decoding, 1)] if decoding else parts


def _in_order(batch: ForwardBatch, calls: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows [R, ...] that a step needs, from those of each call [N, rows, ...]."""
    rows: dict[int, torch.Tensor] = {}
    for (indices, _), call in zip(_parts(batch), calls, strict=True):
        rows.update(zip(indices, call, strict=True))
    return torch.cat([rows[i][:num_rows] for i, num_rows in enumerate(batch.num_rows_list)])


@torch.inference_mode()
def probe_states(module: torch.nn.Module, context: ProbeContext) -> list[StateShape]:
    """Run one prompt of `PROBE_LENGTH` tokens, and return the states that its layers keep.

    Sets the paged attention function in `module`. `context` records the attention layers. Raises
    `UnsupportedModelError` if the module does not run in this way.
    """
    register_attention()
    module.set_attn_implementation(ATTENTION_NAME)  # type: ignore[operator]
    device = module.get_input_embeddings().weight.device  # type: ignore[operator]
    positions = torch.arange(PROBE_LENGTH, device=device).unsqueeze(0)
    cache = new_cache(module, 0)
    try:
        _call(module, positions, positions, cache, context)
    except EngineError:
        raise
    except Exception as error:
        raise UnsupportedModelError(f"a forward pass with states fails: {error}") from error
    return [
        StateShape(i, kind, index, tuple(state.shape[1:]), state.dtype, state.device)
        for i, layer in enumerate(cache.layers)
        for kind in STATE_KINDS
        for index, state in getattr(layer, kind, {}).items()
        if state is not None
    ]


def _call(
    module: torch.nn.Module,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    cache: Cache,
    context: PagedContext | ProbeContext,
    rows: int | torch.Tensor = 1,
) -> torch.Tensor:
    """Return the logits [N, R, V] of token ids int64[N, T] and positions int64[N, T] or [3, N, T].

    R is T, unless the module can select rows: so many of the last ones, or those of int64[R].
    """
    parameters = inspect.signature(module.forward).parameters
    extra: dict[str, Any] = {cache_argument(module.forward): cache}
    if "position_ids" in parameters:
        extra["position_ids"] = positions
    if "logits_to_keep" in parameters:
        extra["logits_to_keep"] = rows
    logits: torch.Tensor = module(
        input_ids=token_ids, use_cache=True, stonechat=context, **extra
    ).logits
    return logits
