"""What one entry of the tables of architectures says: its config, its tensors and their layouts.

Names of tensors are ggml's without `blk.<layer>.`, and transformers' without the prefix of their
layer, `model.layers.<layer>.`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stonechat_models.checkpoint.gguf.metadata import Config, Read
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.rope import rope_of
from stonechat_models.checkpoint.hf_config import HFConfig

EFFECTS = {
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attention.value_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.beta_fast": (32.0,),
    "rope.scaling.beta_slow": (1.0,),
    "rope.scaling.mscale": (),
    "rope.scaling.mscale_all_dim": (),
    "rope.scaling_beta": (0.0,),
    "router_logit_softcapping": (0.0,),
    "swiglu_clamp_exp": (0.0,),
    "swiglu_clamp_shexp": (0.0,),
}
"""Metadata keys that change what a model computes, and the values with which they do not. Those
of `rope.scaling` are Ollama's names; llama.cpp has others for them."""

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3
"""The values of `expert_gating_func`: what makes weights of the scores of experts."""

Layout = Callable[[np.ndarray, HFConfig], np.ndarray]
"""Turns the stored values of a tensor, float32, into those of the parameter."""
Join = Callable[[Sequence[np.ndarray], HFConfig], np.ndarray]
"""Turns the stored values of several tensors into those of one parameter."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Tensors that make one parameter together; `parts` are full names such as `a.weight`."""

    target: str
    parts: tuple[str, ...]
    join: Join


@dataclass(frozen=True, slots=True)
class Architecture:
    """How transformers names and configures one ggml architecture."""

    model_type: str
    class_name: str
    keys: Mapping[str, Read] = field(default_factory=dict)
    """What config.json says beyond what all models have, and how the file says it."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """What config.json says and no file of this architecture does."""
    adapt: Callable[[GgufFile, Config], None] = lambda gguf, config: None
    """Changes the config where keys alone do not describe it."""
    effects: frozenset[str] = frozenset()
    """Keys of `EFFECTS` that the config honours. A file with another one is refused."""
    gating: int = SOFTMAX
    """What the model does, if it has experts. A file that says otherwise is refused."""
    rope: Callable[[GgufFile], Config] = rope_of
    partial_rope: bool = False
    """RoPE may cover a part of each head."""
    is_encoder: bool = False
    """The model makes embeddings or scores, and no text."""
    dense: tuple[str, ...] = ()
    """Matrices that a pooled vector is multiplied with, one after the other. Files may lack them.
    """
    own_heads: bool = False
    """`adapt` sets the sizes of heads, and not every layer has the same."""
    eps: str = "rms_norm_eps"
    """The config's name for the epsilon of norms."""
    layer_norm: bool = False
    """The norms subtract the mean."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of tensors that differ from those of all models. A full ggml name such as `ssm_a` or
    `x.weight` stands for a full name; others keep their `.weight` or `.bias`. `{}` in a name
    stands for the number of an expert or head: each gets a parameter of its own."""
    top_names: Mapping[str, str] = field(default_factory=dict)
    """As `names`, for tensors outside the layers, with transformers' whole name."""
    merges: tuple[Merge, ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Layouts of tensors by their full ggml names."""
    extra: Callable[[GgufFile], Iterable[tuple[str, np.ndarray]]] = lambda gguf: ()
    """Parameters that no tensor holds, by transformers' whole names."""
    layer_prefix: str = "model.layers"
    permuted_rope: bool = False
    """The file stores query and key rows in the order of interleaved RoPE pairs."""
    norm_offset: float = 0.0
    """The file's norm weights are larger than the module's by this much. This holds for those
    without a layout whose names end in `norm.weight`."""
    plain_norms: frozenset[str] = frozenset()
    """Norms without that offset, by their full ggml names."""
    variants: tuple[tuple[Callable[[GgufFile], bool], "Architecture"], ...] = ()
    """Conditions and entries: a file gets the entry of the first condition that holds for it."""
