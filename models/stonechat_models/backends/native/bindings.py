"""ctypes bindings of `csrc/api.cpp`.

The structures mirror those of `csrc/matrix.h` and `csrc/layers.h`: same fields, same order.
"""

import ctypes
import os
import platform
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_void_p
from enum import IntEnum
from functools import cache
from typing import Any

from stonechat_models.backends.native.compile import build_library, target_flags
from stonechat_models.backends.native.levels import find_prebuilt
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.hardware.cpus import processor_flags

GROUP = 32
"""Number of consecutive weights, or activations, that share a scale."""
PANEL = 16
"""Number of output columns that are packed together."""
KV_TILE = 16
"""Tokens per KV cache tile. A block is one or more tiles."""

PARTS = ("norms", "qkv", "mixer", "output", "gate_up", "down", "head")
"""The parts of a step whose time is measured, in the order of `Part` in `csrc/layers.h`."""


class Kind(IntEnum):
    """Formats of rows of weights, in a file and packed, by their names in GGUF files."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q8_0 = 3
    Q4_0 = 4
    Q4_1 = 5
    Q5_0 = 6
    Q5_1 = 7
    IQ4_NL = 8
    MXFP4 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_XS = 15

    @property
    def is_quantised(self) -> bool:
        return self >= Kind.Q8_0

    @property
    def is_4_bit(self) -> bool:
        return self in (Kind.Q4_0, Kind.Q4_1, Kind.Q4_K)


class MatrixStruct(ctypes.Structure):
    """A packed matrix W[n, k]."""

    _fields_ = (
        ("kind", c_int),
        ("n", c_int),
        ("k", c_int),
        ("data", c_void_p),
        ("bias", c_void_p),
    )


class Activation(IntEnum):
    """The activation function that the gate of a feed-forward block is passed through."""

    SILU = 0
    GELU_TANH = 1


class Mixer(IntEnum):
    """What mixes the tokens of a sequence in a layer; see `csrc/layers.h`."""

    ATTENTION = 0
    SHORT_CONVOLUTION = 1
    DELTA_RULE = 2


class KvFormat(IntEnum):
    """What cached keys and values are made of; see `csrc/kv_cache.h`."""

    BFLOAT16 = 0
    INT8 = 1


class ConfigStruct(ctypes.Structure):
    """Sizes and constants of a model."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp", "vocab")
        ),
        *((name, c_int32) for name in ("rotary_dim", "rotary_tables", "activation")),
        *((name, c_int32) for name in ("expert_mlp", "experts_per_token", "scale_chosen")),
        *((name, c_int32) for name in ("taps", "key_heads", "value_heads", "key_dim", "value_dim")),
        ("interleaved", c_int32),
        *((name, c_float) for name in ("rms_eps", "attention_scale")),
        *((name, c_float) for name in ("embedding_scale", "residual_scale", "logit_scale")),
        *((name, c_float) for name in ("attention_cap", "logit_cap")),
        *((name, c_void_p) for name in ("inverse_frequencies", "rotary_scales", "rotary_axes")),
    )


class LayerStruct(ctypes.Structure):
    """Weights and attention settings of one layer."""

    _fields_ = (
        *((name, MatrixStruct) for name in ("q", "k", "v", "z", "a", "b", "o")),
        *((name, MatrixStruct) for name in ("gate", "up", "down", "router")),
        *((f"shared_{name}", MatrixStruct) for name in ("gate", "up", "down", "router")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm")),
        *((name, c_void_p) for name in ("attention_out_norm", "mlp_out_norm")),
        *((name, c_void_p) for name in ("q_norm", "k_norm")),
        *((name, c_void_p) for name in ("taps", "taps_bias", "decay", "step_bias", "value_norm")),
        *((name, c_int32) for name in ("whole_norms", "window", "rotary", "experts", "mixer")),
    )


class MediaStruct(ctypes.Structure):
    """What media change in a step; see `StepMedia` in `backends/base.py`."""

    _fields_ = (
        *((name, c_int32) for name in ("count", "layers")),
        *((name, c_void_p) for name in ("rows", "embeddings", "layer_embeddings")),
        *((name, c_void_p) for name in ("rope_positions", "visible_ends")),
    )


class BatchStruct(ctypes.Structure):
    """The tensors of one step. `media` is null for a step without images or audio."""

    _fields_ = (
        *((name, c_int32) for name in ("tokens", "sequences", "block_width", "outputs")),
        *((name, c_void_p) for name in ("token_ids", "positions", "slots")),
        *((name, c_void_p) for name in ("query_start", "block_table", "logits_index")),
        *((name, c_void_p) for name in ("state_slots", "logits", "hidden")),
        ("media", POINTER(MediaStruct)),
    )


class ScoresStruct(ctypes.Structure):
    """Where the log-probabilities of rows are written; see `csrc/scores.h`."""

    _fields_ = (
        ("tops", c_int32),
        *((name, c_void_p) for name in ("values", "peaks", "masses", "ranks")),
        *((name, c_void_p) for name in ("top_values", "top_ids")),
    )


class Library:
    """The loaded library. Calls release the interpreter lock."""

    def __init__(self, path: str) -> None:
        self.path = path
        lib = ctypes.CDLL(path)

        def bind(name: str, result: object, *arguments: object) -> Callable[..., int]:
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
            binding: Callable[..., int] = function
            return binding

        def bind_create(name: str, *arguments: object) -> Callable[..., int]:
            create = bind(name, c_void_p, *arguments)

            def create_or_raise(*values: object) -> int:
                handle = create(*values)
                if not handle:
                    raise ModelLoadError("there is not enough memory, or there are no more threads")
                return handle

            return create_or_raise

        matrix = POINTER(MatrixStruct)
        self.isa = _text(bind("sc_isa", c_char_p)())
        self.packed_bytes = bind("sc_packed_bytes", c_size_t, c_int, c_int, c_int)
        self.row_bytes = bind("sc_row_bytes", c_size_t, c_int, c_int)
        """Bytes of a row of k weights of a kind in a file."""
        self.pool_create = bind_create("sc_pool_create", c_int)
        self.pool_destroy = bind("sc_pool_destroy", None, c_void_p)
        self.pack = bind(
            "sc_pack",
            *(None, c_void_p, c_int, c_int, c_int, c_int),
            *(c_void_p, c_size_t, c_void_p, c_void_p),
        )
        self.read_row = bind("sc_read_row", None, matrix, c_int, c_void_p)
        self.matmul = bind("sc_matmul", None, matrix, c_void_p, c_int, c_void_p)
        self.linear_team_create = bind_create("sc_linear_team_create", c_void_p)
        self.linear_team_destroy = bind("sc_linear_team_destroy", None, c_void_p)
        self.linear = bind("sc_linear", None, c_void_p, matrix, c_void_p, c_int, c_void_p)
        self.sampler_create = bind_create("sc_sampler_create", c_void_p)
        self.sampler_destroy = bind("sc_sampler_destroy", None, c_void_p)
        self.sample: Callable[..., Any] = bind(
            "sc_sample",
            *(c_char_p, c_void_p, c_void_p, c_int, c_int),
            *(c_void_p, c_void_p, c_void_p),
        )
        """Sample rows. Returns None, or why it cannot run."""
        self.score: Callable[..., Any] = bind(
            "sc_score",
            *(c_char_p, c_void_p, c_void_p, c_int, c_int, c_void_p, POINTER(ScoresStruct)),
        )
        """Compute the log-probabilities of rows. Returns None, or why it cannot run."""
        self.model_create = bind_create("sc_model_create", POINTER(ConfigStruct), c_int)
        self.model_destroy = bind("sc_model_destroy", None, c_void_p)
        self.model_pool = bind("sc_model_pool", c_void_p, c_void_p)
        self.set_layer = bind("sc_model_set_layer", None, c_void_p, c_int, POINTER(LayerStruct))
        self.set_ends = bind("sc_model_set_ends", None, c_void_p, matrix, matrix, c_void_p)
        self.set_cache = bind(
            "sc_model_set_cache",
            *(None, c_void_p, c_int, c_void_p, c_size_t, c_int, c_int, c_int, c_int, c_int),
        )
        self.attend = bind(
            "sc_attend",
            *(None, POINTER(ConfigStruct), POINTER(LayerStruct), c_void_p, c_int, c_int, c_int),
            *(POINTER(BatchStruct), c_void_p, c_int, c_void_p),
        )
        self.set_states = bind(
            "sc_model_set_states", None, c_void_p, c_int, c_void_p, c_size_t, c_int
        )
        self.seconds: Callable[..., Any] = bind("sc_model_seconds", POINTER(c_double), c_void_p)
        self.forward: Callable[..., Any] = bind(
            "sc_model_forward", c_char_p, c_void_p, POINTER(BatchStruct)
        )
        """Run a step. Returns None, or why it cannot run."""


def _text(value: object) -> str:
    assert isinstance(value, bytes)
    return value.decode()


@cache
def _open(path: str) -> Library:
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise UnsupportedModelError(f"the compiled kernels cannot be loaded: {error}") from error


def load_library(progress: Progress = lambda line: None, architecture: str = "native") -> Library:
    """Return the library for this processor: that of a platform wheel, or else a compiled one.

    If `$CXX` names a compiler, the wheel's library is not used. Raises `UnsupportedModelError` with
    the reason if no library can be compiled or loaded.
    """
    machine, flags = platform.machine(), processor_flags()
    if architecture == "native" and not os.environ.get("CXX"):
        prebuilt = find_prebuilt(machine, flags)
        if prebuilt is not None:
            try:
                return _open(str(prebuilt))
            except UnsupportedModelError as error:
                progress(f"the wheel's library is not used: {error}")
    return _open(str(build_library(progress, target_flags(architecture, machine, flags))))
