"""A decoder on the CPU. Each step is one call of the compiled library."""

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import HostBatch
from stonechat_models.backends.native.bindings import (
    PARTS,
    BatchStruct,
    ConfigStruct,
    Kind,
    KvFormat,
    LayerStruct,
    Library,
    load_library,
)
from stonechat_models.backends.native.caches import (
    KV_FORMATS,
    STATE_BYTES,
    KvCache,
    StatePool,
    kv_bytes_per_token,
)
from stonechat_models.backends.native.packing import PackedWeights
from stonechat_models.backends.native.plan.spec import ModelSpec
from stonechat_models.backends.native.plan.weights import WeightPlan, plan_weights
from stonechat_models.backends.native.sampler import NativeSampler
from stonechat_models.backends.native.step_media import media_struct
from stonechat_models.backends.native.stores import open_store
from stonechat_models.backends.native.support import checked_spec
from stonechat_models.backends.native.tensor_source import FLOAT_TYPES
from stonechat_models.backends.native.tower_part import TowerPart, read_audio, read_images
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.resolve import ModelFiles, weights_hash
from stonechat_models.config import EngineConfig
from stonechat_models.errors import StepError, UnsupportedModelError
from stonechat_models.hardware.device import usable_cores
from stonechat_models.hardware.numa import interleave_memory, memory_nodes
from stonechat_models.media.features import MediaFeatures
from stonechat_models.media.video.support import with_videos
from stonechat_models.model_info import ModelInfo
from stonechat_models.types import MediaInput


class NativeModel:
    """The `CausalModel` of the native backend.

    A row's logits have the same bits whatever else is in the batch, and however its prompt is
    split into chunks.
    """

    def __init__(
        self,
        library: Library,
        spec: ModelSpec,
        plan: WeightPlan,
        info: ModelInfo,
        progress: Progress,
        kv_format: KvFormat = KvFormat.BFLOAT16,
    ) -> None:
        self._library = library
        self._spec = spec
        self._weights = PackedWeights(library, plan.matrices, info.threads, progress)
        self._handle = library.model_create(ctypes.byref(self._config()), info.threads)
        self._set_weights(plan)
        self._kv_format = kv_format
        self._kv_cache: KvCache | None = None
        self._states: StatePool | None = None
        self._towers: TowerPart | None = None
        self.info = replace(
            info,
            weight_bytes=self._weights.num_bytes,
            kv_bytes_per_token=kv_bytes_per_token(spec, kv_format),
        )

    @classmethod
    def load(cls, files: ModelFiles, config: EngineConfig, progress: Progress) -> "NativeModel":
        """Read and repack the weights.

        Raises `UnsupportedModelError` if `supports` refuses the model or a type of weights cannot
        be read. Raises `ModelLoadError` if weights are missing or surplus, have the wrong shape or
        do not fit into memory.
        """
        spec, library = checked_spec(files, config), load_library(progress)
        interleave_memory(memory_nodes())
        heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}
        store = open_store(files, heads)
        try:
            plan = plan_weights(spec, store, config.quantize)
            info = ModelInfo(
                name=files.name,
                architecture=files.config.architecture,
                vocab_size=spec.vocab_size,
                device="cpu",
                dtype="float32",
                quantization=_quantization(plan, config),
                backend="native",
                attention_backend=f"native-{library.isa}",
                num_parameters=plan.num_parameters,
                weight_bytes=0,
                weights_hash=weights_hash(files),
                block_size=config.block_size,
                threads=config.threads or usable_cores(),
                keeps_state=spec.state_elements > 0,
                state_bytes=spec.state_elements * STATE_BYTES,
            )
            kv_format = KV_FORMATS[config.kv_cache_dtype]
            model = cls(library, spec, plan, info, progress, kv_format)
            model.info = replace(model.info, image_refusal=files.image_refusal)
            model._add_towers(files, plan.prefixes)
            return model
        finally:
            store.close()

    def _add_towers(self, files: ModelFiles, language_model: tuple[str, ...]) -> None:
        """Decide whether the model takes images, audio and videos."""
        has_axes = self._spec.rotary_axes is not None
        try:
            images = read_images(files, language_model, has_axes=has_axes)
            self.info = replace(self.info, images=images)
        except UnsupportedModelError as error:
            self.info = replace(self.info, image_refusal=str(error))
        try:
            self.info = replace(self.info, audio=read_audio(files, language_model))
        except UnsupportedModelError as error:
            self.info = replace(self.info, audio_refusal=str(error))
        self.info = with_videos(self.info, files.config)
        if self.info.media_token_ids:
            self._towers = TowerPart(files, language_model, self.info.threads)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.model_destroy(self._handle)
            self._handle = 0

    @property
    def hidden_size(self) -> int:
        return self._spec.hidden_size

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Allocate the KV cache and the recurrent states.

        The system provides their pages only as they fill. Raises `ModelLoadError` if `block_size`
        is not a multiple of 16, the slots are more than the compiled code can number, or memory
        runs out.
        """
        self._kv_cache = KvCache(
            *(self._library, self._handle, self._spec, self._kv_format),
            *(num_blocks, block_size),
        )
        self._states = StatePool(self._library, self._handle, self._spec, self.info.num_state_slots)
        self.info = replace(self.info, num_blocks=num_blocks, block_size=block_size)

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        assert self._kv_cache is not None
        self._kv_cache.copy(pairs)

    def copy_states(self, pairs: list[tuple[int, int]]) -> None:
        assert self._states is not None
        self._states.copy(pairs)

    def free_states(self, slots: list[int]) -> None:
        """The pool keeps its size."""

    def encode_media(self, medium: MediaInput) -> MediaFeatures:
        assert self._towers is not None
        return self._towers.loaded().encode(medium)

    def media_positions(
        self, token_ids: Sequence[int], media: Sequence[MediaInput]
    ) -> tuple[npt.NDArray[np.int64], int]:
        assert self._towers is not None
        return self._towers.loaded().positions(token_ids, media)

    def forward_hidden(
        self, batch: HostBatch
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        hidden = np.empty((len(batch.logits_index), self._spec.hidden_size), dtype=np.float32)
        return self.forward(batch, hidden), hidden

    def forward(
        self, batch: HostBatch, hidden: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the logits of the rows in `logits_index`, float32[rows, vocab_size].

        The final hidden states of these rows are written to `hidden`, if it is given. Raises
        `StepError` for a token outside the vocabulary, or for a position, slot, block, row or state
        that does not exist.
        """
        logits = np.empty((len(batch.logits_index), self._spec.vocab_size), dtype=np.float32)
        num_seqs = len(batch.query_start) - 1
        addresses = [
            numbers.buffer_info()[0] if numbers else None
            for numbers in (
                *(batch.token_ids, batch.positions, batch.slot_mapping, batch.query_start),
                *(batch.block_table, batch.logits_index, batch.state_slots),
            )
        ]
        step = BatchStruct(
            *(len(batch.token_ids), num_seqs, len(batch.block_table) // max(1, num_seqs)),
            *(len(logits), *addresses, logits.ctypes.data),
            None if hidden is None else hidden.ctypes.data,
        )
        if batch.media is not None:
            # The arrays live as long as this call.
            media, _arrays = media_struct(batch.media, self._spec, len(batch.token_ids))
            step.media = ctypes.pointer(media)
        problem = self._library.forward(self._handle, ctypes.byref(step))
        if problem is not None:
            raise StepError(problem.decode())
        return logits

    def new_sampler(self) -> NativeSampler:
        """Return a sampler that runs on the model's threads, between steps."""
        pool = self._library.model_pool(self._handle)
        return NativeSampler(self._library, pool, self._spec.vocab_size)

    def part_seconds(self) -> dict[str, float]:
        """Seconds spent in each part, over all steps so far."""
        seconds = self._library.seconds(self._handle)
        return {part: seconds[i] for i, part in enumerate(PARTS)}

    def _config(self) -> ConfigStruct:
        spec, scales, experts = self._spec, self._spec.scales, self._spec.experts
        rotary_scales = np.array([table.scale for table in spec.rotary], dtype=np.float32)
        return ConfigStruct(
            layers=spec.num_layers,
            hidden=spec.hidden_size,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            mlp=spec.intermediate_size,
            vocab=spec.vocab_size,
            rotary_dim=2 * spec.inverse_frequencies.shape[1],
            rotary_tables=len(spec.rotary),
            activation=spec.activation,
            expert_mlp=experts.size if experts else 0,
            experts_per_token=experts.per_token if experts else 0,
            scale_chosen=experts.scale_chosen if experts else 0,
            rms_eps=spec.rms_norm_eps,
            attention_scale=scales.attention,
            embedding_scale=scales.embedding,
            residual_scale=scales.residual,
            logit_scale=scales.logits,
            **self._recurrent_sizes(),
            attention_cap=scales.attention_cap,
            logit_cap=scales.logit_cap,
            inverse_frequencies=self._weights.vector(spec.inverse_frequencies),
            rotary_scales=self._weights.vector(rotary_scales),
            rotary_axes=None if spec.rotary_axes is None else spec.rotary_axes.ctypes.data,
        )

    def _recurrent_sizes(self) -> dict[str, int]:
        recurrence = self._spec.recurrence
        names = ("taps", "key_heads", "value_heads", "key_dim", "value_dim", "interleaved")
        return {name: getattr(recurrence, name) for name in names} if recurrence else {}

    def _set_weights(self, plan: WeightPlan) -> None:
        packed = iter(self._weights.matrices)
        for i, layer in enumerate(plan.layers):
            experts = self._spec.experts
            struct = LayerStruct(
                whole_norms=self._spec.family.whole_norms,
                window=self._spec.windows[i],
                rotary=self._spec.rotary_tables[i],
                experts=experts.count if experts and self._spec.has_experts(i) else 0,
                mixer=self._spec.mixer(i),
            )
            for name in layer.matrices:
                setattr(struct, name, next(packed))
            for name, values in layer.vectors.items():
                setattr(struct, name, self._weights.vector(values))
            self._library.set_layer(self._handle, i, ctypes.byref(struct))
        embedding = next(packed)
        head = next(packed, embedding)
        final_norm = self._weights.vector(plan.final_norm)
        self._library.set_ends(
            self._handle, ctypes.byref(embedding), ctypes.byref(head), final_norm
        )


def _quantization(plan: WeightPlan, config: EngineConfig) -> str:
    """The format of most weights; "none" for floats. `auto` keeps the name of the stored type."""
    sizes: Counter[str] = Counter()
    for matrix in (p for layer in plan.layers for p in layer.matrices.values()):
        type_name = matrix.rows.type_name if config.quantize == "auto" else _bits_name(matrix.kind)
        sizes[type_name] += matrix.rows.n * matrix.rows.k
    name = sizes.most_common(1)[0][0]
    return "none" if name in FLOAT_TYPES else name


def _bits_name(kind: Kind) -> str:
    if not kind.is_quantised:
        return kind.name
    return "int8" if kind == Kind.Q8_0 else "int4"
