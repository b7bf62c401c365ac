"""Sizes a model in each precision and backend that can serve it, before it is loaded.

What a model takes and why it is refused is asked of the code that loads it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, get_args

import torch

from stonechat_models.backends import native
from stonechat_models.backends.quantization.device_support import (
    precision_of,
    refuse_weight_format,
)
from stonechat_models.backends.transformers.stored.choice import kept_names, settings_keep_codes
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.headers import Footprint, ModelHeaders
from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.packed.tensors import OTHER_TOWER, Packing
from stonechat_models.checkpoint.support import (
    context_length,
    refuse_encoder_decoder,
    refuse_other_heads,
)
from stonechat_models.config import EngineConfig, Precision, Quantize
from stonechat_models.diagnostics.gpu_support import why_no_launcher
from stonechat_models.diagnostics.stored_weights import stored_footprint
from stonechat_models.diagnostics.survey import ServingForm
from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware.device import choose_dtype, free_memory
from stonechat_models.media.hf_processor import audio_packages_refusal, pillow_refusal
from stonechat_models.model_info import ModelUse
from stonechat_models.runtime.assemble import why_no_graphs
from stonechat_models.runtime.build import model_use, native_refusal
from stonechat_models.runtime.cache_sizes import size_kv_cache, size_states
from stonechat_models.runtime.ranks.refusals import (
    refuse_model,
    refuse_settings,
    refuse_uneven,
)

if TYPE_CHECKING:
    from stonechat_models.backends.quantization.cpu_linear import LinearTeam
    from stonechat_models.backends.transformers.loading.footprint import EmptyModel

AS_STORED = "as stored"
NATIVE_FORMS: dict[Quantize, str] = {"auto": AS_STORED, "int8": "int8", "int4": "int4"}
DTYPES = ("float32", "bfloat16", "float16")


class FormPlanner:
    """Sizes a model in each form, and collects why the settings, as they are, are refused."""

    def __init__(
        self,
        headers: ModelHeaders,
        config: EngineConfig,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.headers = headers
        self.config = config
        self.device = device
        self.progress = progress
        self.num_ranks = config.tensor_parallel
        self.free = free_memory(device)
        if self.num_ranks > 1:
            self.free = self._free_on_each(self.free)
        self.max_model_len = context_length(headers.config, None)
        self.packing = Packing()
        self.native_refusal: str | None = None
        self.use: ModelUse = "generation"
        self.attention = ""
        """The attention backend that is tried first, if the model runs through PyTorch."""
        self.refusals: list[str] = []
        self._empty_model: EmptyModel | None = None
        self._draft_kv_bytes = 0

    def leave_room(self, weight_bytes: int, kv_bytes_per_token: int) -> None:
        """Leave room for a draft model, whose KV cache has as many tokens."""
        self.free = max(0, self.free - weight_bytes)
        self._draft_kv_bytes = kv_bytes_per_token

    def _free_on_each(self, free: int) -> int:
        """Return how much memory is free on each of the devices that share the model."""
        if self.device.type == "cpu":
            return free // self.num_ranks
        if self.device.type == "cuda":
            num_devices = min(self.num_ranks, torch.cuda.device_count())
            return min(free_memory(torch.device("cuda", i)) for i in range(num_devices))
        return free

    @contextmanager
    def _noting(self, counts: bool = True) -> Iterator[None]:
        """Catch a refusal; `counts`: it is one of the settings as they are."""
        try:
            yield
        except ModelLoadError as error:
            if counts:
                self.refusals.append(str(error))

    def check(self) -> None:
        """Make the checks that `build_engine` makes before it loads a model."""
        headers = self.headers
        with self._noting():
            refuse_weight_format(self.config, self.device)
            self.use = model_use(headers.config, headers.weight_format, headers.has_modules)
        if self.use != "generation":
            self.native_refusal = f"it is for {self.use}"
            return
        with self._noting():
            refuse_other_heads(self.headers.config)
            refuse_encoder_decoder(self.headers.config)
            self.packing = read_packing(self.headers)
            self.max_model_len = context_length(self.headers.config, self.config.max_model_len)
        if self.num_ranks > 1:
            self.native_refusal = "several devices share the model"
            with self._noting():
                refuse_settings(self.config, self.device)
                refuse_model(headers, self.num_ranks)
                refuse_uneven(headers, self.num_ranks)
            self._check_transformers()
            return
        try:
            self.native_refusal = native_refusal(self.headers, self.config, self.progress)
        except ModelLoadError as error:
            self.native_refusal = str(error)
            self.refusals.append(self.native_refusal)
        if self.config.backend != "native":
            self._check_transformers()

    def _check_transformers(self) -> None:
        from stonechat_models.backends.transformers.loading.footprint import EmptyModel
        from stonechat_models.backends.transformers.loading.load import load_settings

        with self._noting(self.native_refusal is not None):
            settings = load_settings(self.headers.config, self.config, self.device)
            self.packing.refuse_own_names()
            self.attention = settings.attention.name
            if self.attention == "triton" and why_no_launcher() is not None:
                self.attention = "batched"
            self._empty_model = EmptyModel.build(self.headers.config)
            if self._empty_model is not None:
                self._empty_model.probe()

    @property
    def graphs_refusal(self) -> str | None:
        """Why steps on a CUDA device run without CUDA graphs; None: they have them, or no such
        device is used."""
        if self.device.type != "cuda" or self._empty_model is None:
            return None
        runs_plainly = self._empty_model.runs_plainly
        return why_no_graphs(self.config, self.attention, runs_plainly=runs_plainly)

    @property
    def may_take_images(self) -> bool:
        """Whether the model's files have a vision tower."""
        return bool(self.headers.config.raw.get("vision_config"))

    @property
    def image_refusal(self) -> str:
        """Why such a model takes no images, as far as it is known before it is loaded."""
        if not self.may_take_images:
            return self.headers.image_refusal
        if refusal := pillow_refusal():
            return refusal
        if self.packing.has_own_names:
            return OTHER_TOWER
        if self.native_refusal is None or self._empty_model is None:
            return ""
        from stonechat_models.backends.transformers.media_checks.common import RUNS_PLAINLY
        from stonechat_models.backends.transformers.media_checks.images import code_refusal

        if self._empty_model.runs_plainly:
            return RUNS_PLAINLY
        return code_refusal(self._empty_model.module, self.num_ranks)

    @property
    def may_take_audio(self) -> bool:
        """Whether the model's files have an audio tower."""
        return bool(self.headers.config.raw.get("audio_config"))

    @property
    def audio_refusal(self) -> str:
        """Why such a model takes no audio, as far as it is known before it is loaded."""
        if not self.may_take_audio:
            return ""
        if refusal := audio_packages_refusal():
            return refusal
        if self._empty_model is None:
            return ""
        from stonechat_models.backends.transformers.media_checks.audio import audio_refusal
        from stonechat_models.backends.transformers.media_checks.common import RUNS_PLAINLY

        if self._empty_model.runs_plainly:
            return RUNS_PLAINLY
        return audio_refusal(self._empty_model.module, self.num_ranks)

    def forms(self) -> Iterator[ServingForm]:
        """Yield the forms that the device supports."""
        if self.use != "generation":
            yield self._only_form()
            return
        default = self._default()
        for name, config in self._candidates():
            is_default = (config.backend, name) == default
            if name == "float16" and self.device.type == "cpu" and not is_default:
                continue
            with self._noting(is_default):
                size = self._footprint(config)
                kv_bytes = size.kv_bytes_per_token
                size = replace(size, kv_bytes_per_token=kv_bytes + self._draft_kv_bytes)
                yield ServingForm(
                    name=name,
                    backend=self._backend(config),
                    weight_bytes=size.weight_bytes,
                    decode_bytes=size.decode_bytes,
                    kv_bytes_per_token=size.kv_bytes_per_token,
                    kv_tokens=self._kv_tokens(size, is_default),
                    is_default=is_default,
                )

    def _only_form(self) -> ServingForm:
        """Return the only form of a model that does not generate: the one that settings choose."""
        dtype = choose_dtype(self.config.dtype, self.headers.config.dtype, self.device)
        num_weights = sum(tensor.num_elements for tensor in self.headers.tensors)
        return ServingForm(
            name=str(dtype).removeprefix("torch."),
            backend="transformers",
            weight_bytes=num_weights * dtype.itemsize,
            decode_bytes=num_weights * dtype.itemsize,
            kv_bytes_per_token=0,
            kv_tokens=0,
            is_default=True,
        )

    def _backend(self, config: EngineConfig) -> str:
        """The name that `ModelInfo.backend` has once the model is loaded."""
        is_plain = self._empty_model is not None and self._empty_model.runs_plainly
        return "plain" if config.backend == "transformers" and is_plain else config.backend

    def _default(self) -> tuple[str, str]:
        """Return the backend and the name of the form that the settings choose."""
        precision = precision_of(self.config)
        if self.native_refusal is None:
            return "native", precision or NATIVE_FORMS["auto"]
        if self._keeps_codes(self.config):
            return "transformers", AS_STORED
        dtype = choose_dtype(self.config.dtype, self.headers.config.dtype, self.device)
        return "transformers", precision or str(dtype).removeprefix("torch.")

    def _candidates(self) -> Iterator[tuple[str, EngineConfig]]:
        """Yield the forms to size: each has a name, and the settings that ask for it."""
        if self.native_refusal is None:
            for quantize, name in NATIVE_FORMS.items():
                yield name, replace(self.config, backend="native", quantize=quantize)
        if self._empty_model is None:
            return
        config = replace(self.config, backend="transformers", quantize="auto")
        if self._keeps_codes(config):
            yield AS_STORED, config
        config = replace(config, quantize="none")
        for dtype in DTYPES:
            yield dtype, replace(config, dtype=dtype)
        if self.native_refusal is None or self.num_ranks > 1:
            return
        for precision in get_args(Precision):
            yield precision, replace(config, quantize=precision)

    def _footprint(self, config: EngineConfig) -> Footprint:
        """Return what the model takes with these settings. Raises `ModelLoadError` if refused."""
        from stonechat_models.backends.transformers.loading.load import load_settings

        if config.backend == "native":
            return native.footprint(self.headers, config)
        refuse_weight_format(config, self.device)
        settings = load_settings(self.headers.config, config, self.device)
        assert self._empty_model is not None
        team = self._team if config.quantize != "none" else None
        size = self._empty_model.footprint(settings, self.device.type, team, self.num_ranks)
        if self._keeps_codes(config):
            module = self._empty_model.module
            size = stored_footprint(self.headers, self.packing, module, settings.dtype, size)
        num_elements = sum(adapter.num_elements for adapter in self.headers.adapters)
        adapter_bytes = num_elements * settings.dtype.itemsize
        return replace(size, weight_bytes=size.weight_bytes + adapter_bytes)

    def _keeps_codes(self, config: EngineConfig) -> bool:
        """Whether weights stay quantised on a CUDA device with these settings."""
        return (
            self.native_refusal is not None
            and settings_keep_codes(config, self.device)
            and why_no_launcher() is None
            and config.adapter is None
            and self._empty_model is not None
            and bool(kept_names(self.headers, self.packing, self._empty_model.module))
        )

    @cached_property
    def _team(self) -> "LinearTeam | None":
        """The compiled kernels, whose layers have sizes of their own."""
        from stonechat_models.backends.transformers.loading.quantize import load_team

        return load_team(1, self.progress) if self.device.type == "cpu" else None

    def _kv_tokens(self, size: Footprint, is_default: bool) -> int:
        """Return how many tokens the KV cache holds, with the memory that the weights leave."""
        num_blocks = 0
        if size.kv_bytes_per_token or size.state_bytes:
            with self._noting(is_default):
                free, num_states = self.free - size.weight_bytes, 0
                if size.state_bytes:
                    num_states, _ = size_states(
                        self.config, self.device, free=free, state_bytes=size.state_bytes
                    )
                num_blocks, _ = size_kv_cache(
                    self.config,
                    self.device,
                    free=free,
                    state_bytes=num_states * size.state_bytes,
                    bytes_per_token=size.kv_bytes_per_token,
                    max_model_len=self.max_model_len,
                )
        return num_blocks * self.config.block_size
