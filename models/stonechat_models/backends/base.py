"""A step's input to a model, and the protocol that every model implements."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from stonechat_models.errors import StepError
from stonechat_models.media.features import MediaFeatures
from stonechat_models.model_info import ModelInfo
from stonechat_models.transcript import SpeechSegment
from stonechat_models.types import GenerateRequest, MediaInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

Array = Any
"""A tensor of PyTorch, or an array of numpy for a model that computes on the host (`HostBatch`)."""


@dataclass(slots=True)
class StepMedia:
    """What images and audio clips change in a step: the embeddings of some tokens, and more.

    Arrays are on the model's device (tensors of PyTorch), or on the host (arrays of numpy) for
    models that take a `HostBatch`.
    """

    rows: Array
    """int64[I]: the packed tokens that are placeholders, in ascending order. Their token ids do not
    count, and may be beyond the vocabulary."""
    embeddings: Array
    """[I, H]: what stands in the place of their token embeddings. float32 on the host."""
    layer_embeddings: Sequence[Array] = ()
    """Each [I, H]: what is added to the hidden states of these tokens after the first layers, one
    array a layer (DeepStack). Empty for most models."""
    rope_positions: Array | None = None
    """int64[3, T]: the rotary positions of all tokens of the step in time, height and width
    (M-RoPE), where any sequence of the step has images. None: those of `positions`."""
    visible_ends: Array | None = None
    """int32[T]: each token attends to the positions of its sequence before this one; the position
    after itself for text, the end of the run of placeholders for a token in an image that attends
    in both directions. No end is beyond the tokens that the sequence has after the step. Some
    layers of a model may not use it. None: all tokens attend to those before them and to
    themselves."""

    def to(self, device: "torch.device") -> "StepMedia":
        """Return the same with its tensors on `device`."""
        layers = [embeddings.to(device) for embeddings in self.layer_embeddings]
        return replace(self, layer_embeddings=layers, **_moved(self, device))

    def select(self, tokens: "torch.Tensor") -> "StepMedia":
        """Return what the tokens int64[S] of the step have, in ascending order (PyTorch only)."""
        import torch

        index = torch.searchsorted(self.rows, tokens).clamp(max=len(self.rows) - 1)
        is_placeholder = self.rows[index] == tokens
        index = index[is_placeholder]
        return StepMedia(
            rows=is_placeholder.nonzero()[:, 0],
            embeddings=self.embeddings[index],
            layer_embeddings=[layer[index] for layer in self.layer_embeddings],
            rope_positions=None if self.rope_positions is None else self.rope_positions[:, tokens],
            visible_ends=None if self.visible_ends is None else self.visible_ends[tokens],
        )


@dataclass(slots=True)
class HostBatch:
    """What a `ForwardBatch` holds, for models that need no PyTorch.

    These are plain arrays: in a step of few tokens, those of numpy take longer to make and to hand
    to compiled code.
    """

    token_ids: "array[int]"
    """int64[T], typecode q. So are `positions`, `slot_mapping`, `logits_index`."""
    positions: "array[int]"
    slot_mapping: "array[int]"
    query_start: "array[int]"
    """int32[N + 1], typecode i."""
    block_table: "array[int]"
    """int32[N * W]: the rows of the table behind each other."""
    logits_index: "array[int]"
    state_slots: "array[int]"
    """int64[N], or empty for a model without such a state."""
    media: StepMedia | None = None
    """None: no token of the step is a placeholder, and all rotary positions are `positions`."""


@dataclass(slots=True)
class ForwardBatch:
    """The packed tokens of N sequences: T tokens, of which R need logits.

    Sequence i owns the tokens `query_start[i]:query_start[i + 1]`. They are the last of its first
    `context_lens[i]` tokens. The KV cache keeps its position p in slot
    `block_table[i, p // block_size] * block_size + p % block_size`.
    Tensors are on the model's device. The `*_list` fields are the same numbers on the host.
    """

    token_ids: "torch.Tensor"
    """int64[T]"""
    positions: "torch.Tensor"
    """int64[T]"""
    slot_mapping: "torch.Tensor"
    """int64[T]: the KV cache slot of each token's key and value."""
    query_start: "torch.Tensor"
    """int32[N + 1]"""
    context_lens: "torch.Tensor"
    """int32[N]: tokens of each sequence after this step, including cached ones."""
    block_table: "torch.Tensor"
    """int32[N, W], rows padded with 0."""
    logits_index: "torch.Tensor"
    """int64[R]: indices of the packed tokens that need logits."""
    query_start_list: list[int]
    context_lens_list: list[int]
    state_slots: Sequence[int] = ()
    """Where each sequence's recurrent state is; -1 for a model without such a state. A sequence
    whose tokens begin at position 0 begins with an empty state."""
    state_index: "torch.Tensor | None" = None
    """int64[N]: `state_slots`. None: they are on the host only."""
    num_rows_list: Sequence[int] = ()
    """How many of each sequence's tokens need logits: its last ones. Only models that keep a state,
    and steps with adapters, need it."""
    adapters: Sequence[int] = ()
    """The adapter of each sequence, -1 for none. Empty if no sequence has one."""
    media: StepMedia | None = None
    """None: no token of the step is a placeholder, and all rotary positions are `positions`."""

    def to(self, device: "torch.device") -> "ForwardBatch":
        """Return the same batch with its tensors on `device`."""
        return replace(self, **_moved(self, device))

    def select(self, indices: list[int]) -> "ForwardBatch":
        """Return the batch of these sequences only; each gets the logits of its last token."""
        import torch

        from stonechat_models.hardware.transfers import to_device

        starts = self.query_start_list
        tokens = [t for i in indices for t in range(starts[i], starts[i + 1])]
        query_start = [0, *accumulate(starts[i + 1] - starts[i] for i in indices)]
        device = self.token_ids.device
        rows = to_device(indices, device, torch.int64)
        token_rows = to_device(tokens, device, torch.int64)
        new_starts = to_device(query_start, device, torch.int32)
        return ForwardBatch(
            token_ids=self.token_ids[token_rows],
            positions=self.positions[token_rows],
            slot_mapping=self.slot_mapping[token_rows],
            query_start=new_starts,
            context_lens=self.context_lens[rows],
            block_table=self.block_table[rows],
            logits_index=new_starts[1:].long() - 1,
            query_start_list=query_start,
            context_lens_list=[self.context_lens_list[i] for i in indices],
            state_slots=[self.state_slots[i] for i in indices],
            state_index=None if self.state_index is None else self.state_index[rows],
            num_rows_list=[1] * len(indices),
            adapters=[self.adapters[i] for i in indices] if self.adapters else (),
            media=None if self.media is None else self.media.select(token_rows),
        )

    @property
    def visible_ends(self) -> "torch.Tensor | None":
        """See `StepMedia`."""
        return None if self.media is None else self.media.visible_ends

    def without_visible_ends(self) -> "ForwardBatch":
        """Return the same step for a layer in which no token attends to later ones."""
        if self.media is None:
            return self
        return replace(self, media=replace(self.media, visible_ends=None))

    @property
    def decodes_all(self) -> bool:
        """Whether each sequence has one token in this step, which is not its first."""
        starts = self.query_start_list
        return starts == list(range(len(starts))) and min(self.context_lens_list) > 1

    @property
    def num_seqs(self) -> int:
        return len(self.context_lens_list)

    @property
    def num_tokens(self) -> int:
        return self.query_start_list[-1]


def _moved(record: StepMedia | ForwardBatch, device: "torch.device") -> dict[str, Any]:
    """Return the fields of a record that can be moved, on `device`."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value.to(device) for name, value in values.items() if hasattr(value, "to")}


class CausalModel(Protocol):
    """A loaded model with its paged KV cache. Called from the engine's thread only.

    It computes with tensors of PyTorch on a device, and its batches are `ForwardBatch`. Or it
    computes on the host with arrays of numpy, and its batches are `HostBatch`.
    """

    info: ModelInfo
    """What was loaded. It is complete once the KV cache is allocated and the limits are set."""

    @property
    def hidden_size(self) -> int:
        """Numbers in a row of `forward_hidden`. Raises `UnsupportedModelError` if it has none."""

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Allocate the KV cache. Raises `ModelLoadError` if there is not enough memory."""

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy KV blocks, (source, destination), in all layers, before the next forward."""

    def forward(self, batch: Any) -> Array:
        """Write the step's keys and values, attend, and return logits [R, vocab_size].

        They are float32. Those on a CUDA device may have the model's dtype.
        """

    def forward_hidden(self, batch: Any) -> tuple[Array, Array]:
        """As `forward`. Also return what the output head reads, float32[R, hidden_size]: the final
        hidden states of the same tokens. Only for models with `info.embedding`."""


class MediaModel(CausalModel, Protocol):
    """A model that takes images or audio (`info.images`, `info.audio`)."""

    def encode_media(self, medium: MediaInput) -> MediaFeatures:
        """Run the tower for an image or a clip. Raises what the model's code raises if the
        tensors do not fit."""

    def media_positions(
        self, token_ids: Sequence[int], media: Sequence[MediaInput]
    ) -> "tuple[npt.NDArray[np.int64], int]":
        """Return the rotary positions int64[3, P] of a prompt in time, height and width, and what
        the position of each later token is above its index. Only with `has_grid_positions`."""


class StatefulModel(CausalModel, Protocol):
    """A model that keeps more of a sequence than the KV cache has (`info.keeps_state`)."""

    def copy_states(self, pairs: list[tuple[int, int]]) -> None:
        """Copy states, (source slot, destination slot), in this order, before the next forward."""

    def free_states(self, slots: list[int]) -> None:
        """No sequence uses these slots any more."""


@dataclass(frozen=True, slots=True)
class Text:
    """The tokens of one text, at least one. Of the first `num_unpooled`, none is pooled; of a pair
    of texts, they belong to its first text."""

    token_ids: Sequence[int]
    num_unpooled: int = 0


class EmbeddingModel(Protocol):
    """A loaded model that only makes embeddings or scores. Called from the engine's thread only."""

    info: ModelInfo

    def embed(self, texts: Sequence[Text]) -> "torch.Tensor":
        """Return the embeddings of the texts, float32[N, D] on the CPU.

        Of a reranker, D is 2: the score of a pair of texts, and the number that it is made of.
        """


@dataclass(frozen=True, slots=True)
class Window:
    """What a model of speech hears at once of the clip of a request."""

    request: GenerateRequest
    features: "npt.NDArray[np.float32]"
    """[bands, frames]: at most `SpeechModel.window_frames`, fewer at the end of the clip."""
    start: int
    """How many frames of the clip are before it."""
    language: str
    """Empty: not known yet."""
    max_tokens: int | None
    """How many tokens it may become; None: as many as fit."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model of speech says of a window."""

    language: str
    segments: Sequence[SpeechSegment]
    token_ids: tuple[int, ...]
    """Those of the text of all segments."""
    num_frames: int
    """How far in the window the next one begins, at least 1."""
    is_cut: bool
    """Whether `Window.max_tokens` ended it."""


class SpeechModel(Protocol):
    """A loaded model that transcribes speech. Called from the engine's thread only."""

    info: ModelInfo
    window_frames: int

    def hear(self, windows: Sequence[Window]) -> Sequence[Heard | StepError]:
        """Transcribe windows of the same prompt, task and limit. An error is that of one alone."""
