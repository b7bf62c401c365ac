"""Where the tensors of a GGUF file belong in a model of transformers."""

import re
from dataclasses import dataclass

from stonechat_models.checkpoint.gguf.architecture import Merge
from stonechat_models.checkpoint.gguf.config import architecture_of
from stonechat_models.checkpoint.gguf.metadata import HEAD_PREFIX, num_blocks, ranks
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufTensor
from stonechat_models.checkpoint.gguf.rope import CONFIG_TENSORS
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import UnsupportedModelError

TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_up_exps.weight": "mlp.experts.gate_up_proj",
}
BARE = frozenset({"ssm_a", "ssm_d", "ffn_norm"})
"""Tensors whose names end in neither `.weight` nor `.bias`; the last one is Falcon H1's."""
PERMUTED = frozenset(f"attn_{part}.{kind}" for part in "qk" for kind in ("weight", "bias"))
"""Tensors whose rows come in RoPE pairs if an architecture has `permuted_rope`."""
EXPERT_PARTS = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}
LANGUAGE_MODELS = {"idefics3": "model.text_model."}
"""How the names of a text's weights begin in a model of several parts, by its type. Others begin
with `model.language_model.`."""
NOT_WEIGHTS = frozenset(CONFIG_TENSORS)
"""Tensors that the config describes instead."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's ggml name without its layer, and the parameter that it makes or is a part of."""

    name: str
    target: str
    merge: Merge | None = None

    @property
    def is_expert(self) -> bool:
        """Whether each slice makes a parameter of its own, with its number for `{}`."""
        return "{}" in self.target


def weights_of(gguf: GgufFile) -> list[GgufTensor]:
    """Return the tensors that the model computes with.

    Tensors of rotary factors belong to the config, and layers that predict further tokens are not
    used. The head of a decoder that ranks is none of its weights (`gguf/ranking`), nor is that of
    an encoder that makes embeddings, nor are the layers behind its pooling (`gguf/embedder`).
    """
    count, architecture = num_blocks(gguf), architecture_of(gguf)
    others = (HEAD_PREFIX,) if ranks(gguf) != architecture.is_encoder else ()
    return [
        tensor
        for tensor in gguf.tensors.values()
        if tensor.name not in (*NOT_WEIGHTS, *architecture.dense)
        and not tensor.name.startswith(others)
        and (_layer(tensor.name) or 0) < count
    ]


def _layer(name: str) -> int | None:
    match = re.match(r"blk\.(\d{1,9})\.", name)
    return int(match[1]) if match else None


def place_of(gguf: GgufFile, name: str) -> Place:
    """Return where a tensor belongs.

    Raises `UnsupportedModelError` when the architecture has no such tensor.
    """
    architecture, layer = architecture_of(gguf), _layer(name)
    if layer is None:
        own, names, prefix = name, TOP_NAMES | dict(architecture.top_names), ""
    else:
        own = name.removeprefix(f"blk.{layer}.")
        names, prefix = (
            LAYER_NAMES | dict(architecture.names),
            f"{architecture.layer_prefix}.{layer}.",
        )
        for merge in architecture.merges:
            if own in merge.parts:
                return Place(own, prefix + merge.target, merge)
    base, dot, kind = own.rpartition(".")
    if own in names and (dot or own in BARE):
        return Place(own, prefix + names[own])
    if base not in names or kind not in ("weight", "bias"):
        raise UnsupportedModelError(
            f"{gguf.path.name}: the tensor {name} is not supported; the model's safetensors files "
            "may work"
        )
    return Place(own, f"{prefix}{names[base]}{dot}{kind}")


def module_name(gguf: GgufFile, name: str) -> str:
    """Return the transformers name of a tensor, unique among those of its file.

    A tensor with one projection of all experts gets the experts' name without their number. A part
    of a parameter gets its own name behind that of the parameter.

    Raises `UnsupportedModelError` when the architecture has no such tensor.
    """
    place = place_of(gguf, name)
    own, _, kind = place.name.rpartition(".")
    base, experts, _ = place.target.partition(".experts.")
    if experts and own in EXPERT_PARTS:
        return f"{base}.experts.{EXPERT_PARTS[own]}.{kind}"
    target = place.target.replace(".{}", "")
    return target if place.merge is None else f"{target}.{place.name}"


def whole_name(config: HFConfig, name: str) -> str:
    """Return the name of a language model's parameter in the model of `config`.

    It is another one in a model of several parts.
    """
    towers = (config.raw.get("vision_config"), config.raw.get("audio_config"))
    if towers == (None, None) or not name.startswith("model."):
        return name
    prefix = LANGUAGE_MODELS.get(config.model_type, "model.language_model.")
    return prefix + name.removeprefix("model.")
