"""The vision parts that llama.cpp keeps in files of their own (`mmproj`), by the projector's type.

An entry says how transformers configures such a part together with its language model, how the
model's processor is set, and where the tensors belong. Metadata keys are those of the format,
behind `clip.`. What no file says has the value of the published models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from stonechat_models.checkpoint.gguf.layouts import split_rope_pairs
from stonechat_models.checkpoint.gguf.metadata import (
    Config,
    flag,
    integer,
    numbers,
    positive,
    refusal,
)
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.hf_config import MAX_LAYERS

QWEN2_PIXELS, QWEN3_PIXELS = (3136, 12845056), (65536, 16777216)
QWEN_FRAMES = 2
"""Kernels of the patch embedding, one for each of two frames of a video."""
SOFT_TOKEN = "<image_soft_token>"


@dataclass(frozen=True, slots=True)
class Whole:
    """A model of two parts: its type and class in transformers."""

    model_type: str
    class_name: str
    text_type: str = ""
    """The type of its text. Empty: the same as without the vision part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projector:
    """One type of vision parts."""

    models: Mapping[str, Whole]
    """By the architecture of the language model's file."""
    vision: Callable[[GgufFile], Config]
    """Returns `vision_config`."""
    whole: Callable[[GgufFile], Config] = lambda mmproj: {}
    """Returns what config.json says beside its two parts."""
    tokens: Mapping[str, str]
    """Keys of config.json, and the tokens whose ids they have. The first one is the placeholder."""
    spare: str = ""
    """Matches tokens that stand for nothing. One of them becomes the placeholder if the vocabulary
    lacks it, as that of files made from a SentencePiece model does."""
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the tokenizer, and their tokens."""
    processor_class: str
    image_processor: Callable[[GgufFile], Config]
    """Returns preprocessor_config.json without the class."""
    processor: Callable[[GgufFile], Config] = lambda mmproj: {}
    """Returns processor_config.json without the class."""
    names: Mapping[str, str]
    """Names of tensors without `.weight` or `.bias`, or whole; `*` is the number of a layer.
    Tensors with one target are joined, in this order."""
    layouts: Mapping[str, Callable[[GgufFile, np.ndarray], np.ndarray]] = field(
        default_factory=dict
    )
    """Turn the stored values of tensors, float32, into those of parameters; by whole names."""
    unused: frozenset[str] = frozenset()
    """Tensors that the tower does not compute with."""
    output: tuple[str, int]
    """A tensor, and which of its dimensions is the size of the language model's states."""


def _depth(mmproj: GgufFile) -> int:
    return integer(mmproj, "vision.block_count", limit=MAX_LAYERS)


def _siglip(mmproj: GgufFile, model_type: str, **fixed: object) -> Config:
    return {
        "model_type": model_type,
        "hidden_size": integer(mmproj, "vision.embedding_length"),
        "intermediate_size": integer(mmproj, "vision.feed_forward_length"),
        "num_hidden_layers": _depth(mmproj),
        "num_attention_heads": integer(mmproj, "vision.attention.head_count"),
        "image_size": integer(mmproj, "vision.image_size"),
        "patch_size": integer(mmproj, "vision.patch_size"),
        "layer_norm_eps": positive(mmproj, "vision.attention.layer_norm_epsilon"),
        "hidden_act": _activation(mmproj),
        **fixed,
    }


def _activation(mmproj: GgufFile) -> str:
    if flag(mmproj, "use_gelu", False):
        return "gelu_pytorch_tanh"
    return "silu" if flag(mmproj, "use_silu", False) else "quick_gelu"


def _pixtral(mmproj: GgufFile) -> Config:
    config = _siglip(mmproj, "pixtral")
    activation = config["hidden_act"]  # the file does not say that the GELU is the exact one
    return config | {"hidden_act": "gelu" if activation == "gelu_pytorch_tanh" else activation}


def _split_pairs(mmproj: GgufFile, rows: np.ndarray) -> np.ndarray:
    return split_rope_pairs(rows, integer(mmproj, "vision.attention.head_count"))


def _normalisation(mmproj: GgufFile) -> Config:
    return {name: numbers(mmproj, f"clip.vision.{name}", 3) for name in ("image_mean", "image_std")}


def _patches(mmproj: GgufFile) -> int:
    """Return how many patches each side of an image has."""
    return integer(mmproj, "vision.image_size") // integer(mmproj, "vision.patch_size")


def _tokens(mmproj: GgufFile, scale: int) -> int:
    """Return how many tokens an image becomes if `scale` patches of each side make one."""
    if _patches(mmproj) % scale:
        raise refusal(mmproj, f"{_patches(mmproj)} patches are not a multiple of {scale}")
    return (_patches(mmproj) // scale) ** 2


def _gemma3_tokens(mmproj: GgufFile) -> int:
    return _tokens(mmproj, integer(mmproj, "vision.projector.scale_factor", 4))


def _gemma3_images(mmproj: GgufFile) -> Config:
    size = integer(mmproj, "vision.image_size")
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": size, "width": size},
        **_normalisation(mmproj),
    }


def _idefics3_scale(mmproj: GgufFile) -> int:
    return integer(mmproj, "vision.projector.scale_factor")


def _idefics3_images(mmproj: GgufFile) -> Config:
    size = integer(mmproj, "vision.image_size")
    longest = integer(mmproj, "vision.preproc_image_size", 4 * size)
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": longest},
        "max_image_size": {"longest_edge": size},
        "do_image_splitting": True,
        **_normalisation(mmproj),
    }


def _qwen(mmproj: GgufFile) -> Config:
    return {
        "depth": _depth(mmproj),
        "num_heads": integer(mmproj, "vision.attention.head_count"),
        "patch_size": integer(mmproj, "vision.patch_size"),
        "spatial_merge_size": integer(mmproj, "vision.spatial_merge_size", 2),
        "temporal_patch_size": QWEN_FRAMES,
        "hidden_act": _activation(mmproj),
    }


def _qwen_widths(mmproj: GgufFile) -> Config:
    return {
        "hidden_size": integer(mmproj, "vision.embedding_length"),
        "intermediate_size": integer(mmproj, "vision.feed_forward_length"),
        "out_hidden_size": width_of(mmproj, "mm.2.weight", 0),
    }


def _qwen2(mmproj: GgufFile) -> Config:
    """The size of the feed-forward blocks is that of tensors: the file names another one."""
    width, name = integer(mmproj, "vision.embedding_length"), "v.blk.0.ffn_up.weight"
    inner = max(width_of(mmproj, name, 0), width_of(mmproj, name, 1))  # the two may be swapped
    return {
        **_qwen(mmproj),
        "embed_dim": width,
        "hidden_size": width_of(mmproj, "mm.2.weight", 0),
        "mlp_ratio": inner // width,
    }


def _qwen25(mmproj: GgufFile) -> Config:
    config, period = _qwen(mmproj), integer(mmproj, "vision.n_wa_pattern")
    return {
        **config,
        **_qwen_widths(mmproj),
        "fullatt_block_indexes": list(range(period - 1, config["depth"], period)),
        "window_size": integer(mmproj, "vision.window_size", 112),
    }


def deep_layers(mmproj: GgufFile) -> list[int]:
    """Return the layers whose states go to the first layers of the language model (DeepStack)."""
    flags = mmproj.value("vision.is_deepstack_layers")
    return [i for i, is_deep in enumerate(flags) if is_deep] if isinstance(flags, list) else []


def _qwen3(mmproj: GgufFile) -> Config:
    return {
        **_qwen(mmproj),
        **_qwen_widths(mmproj),
        "num_position_embeddings": width_of(mmproj, "v.position_embd.weight", 0),
        "deepstack_visual_indexes": deep_layers(mmproj),
    }


def _qwen_images(mmproj: GgufFile, pixels: tuple[int, int]) -> Config:
    least, most = (
        integer(mmproj, f"vision.image_{name}_pixels", default)
        for name, default in zip(("min", "max"), pixels, strict=True)
    )
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": integer(mmproj, "vision.patch_size"),
        "temporal_patch_size": QWEN_FRAMES,
        "merge_size": integer(mmproj, "vision.spatial_merge_size", 2),
        **_normalisation(mmproj),
    }


def width_of(mmproj: GgufFile, name: str, axis: int) -> int:
    """Return a dimension of a tensor. Raises `UnsupportedModelError` if there is none."""
    tensor = mmproj.tensors.get(name)
    if tensor is None or len(tensor.shape) < 2:
        raise refusal(mmproj, f"{name} is missing or not a matrix")
    return tensor.shape[axis]


def _in(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {name: prefix + target for name, target in names.items()}


_SIGLIP = {
    "v.patch_embd": "embeddings.patch_embedding",
    "v.position_embd": "embeddings.position_embedding",
    "v.blk.*.ln1": "encoder.layers.*.layer_norm1",
    "v.blk.*.attn_q": "encoder.layers.*.self_attn.q_proj",
    "v.blk.*.attn_k": "encoder.layers.*.self_attn.k_proj",
    "v.blk.*.attn_v": "encoder.layers.*.self_attn.v_proj",
    "v.blk.*.attn_out": "encoder.layers.*.self_attn.out_proj",
    "v.blk.*.ln2": "encoder.layers.*.layer_norm2",
    "v.blk.*.ffn_up": "encoder.layers.*.mlp.fc1",
    "v.blk.*.ffn_down": "encoder.layers.*.mlp.fc2",
    "v.post_ln": "post_layernorm",
}
_QWEN = {
    "v.patch_embd.weight": "patch_embed.proj.weight",
    "v.patch_embd.weight.1": "patch_embed.proj.weight",
    "v.blk.*.ln1": "blocks.*.norm1",
    "v.blk.*.attn_qkv": "blocks.*.attn.qkv",
    "v.blk.*.attn_q": "blocks.*.attn.qkv",
    "v.blk.*.attn_k": "blocks.*.attn.qkv",
    "v.blk.*.attn_v": "blocks.*.attn.qkv",
    "v.blk.*.attn_out": "blocks.*.attn.proj",
    "v.blk.*.ln2": "blocks.*.norm2",
}
_QWEN2_MERGER = {"v.post_ln": "merger.ln_q", "mm.0": "merger.mlp.0", "mm.2": "merger.mlp.2"}
_QWEN2 = {
    **_QWEN,
    **_QWEN2_MERGER,
    "v.blk.*.ffn_up": "blocks.*.mlp.fc1",
    "v.blk.*.ffn_down": "blocks.*.mlp.fc2",
}
_QWEN25 = {
    **_QWEN,
    **_QWEN2_MERGER,
    "v.blk.*.ffn_gate": "blocks.*.mlp.gate_proj",
    "v.blk.*.ffn_up": "blocks.*.mlp.up_proj",
    "v.blk.*.ffn_down": "blocks.*.mlp.down_proj",
}
_QWEN3 = {
    **_QWEN,
    "v.patch_embd.bias": "patch_embed.proj.bias",
    "v.position_embd": "pos_embed",
    "v.blk.*.ffn_up": "blocks.*.mlp.linear_fc1",
    "v.blk.*.ffn_down": "blocks.*.mlp.linear_fc2",
    "v.post_ln": "merger.norm",
    "mm.0": "merger.linear_fc1",
    "mm.2": "merger.linear_fc2",
    "v.deepstack.*.norm": "deepstack_merger_list.*.norm",
    "v.deepstack.*.fc1": "deepstack_merger_list.*.linear_fc1",
    "v.deepstack.*.fc2": "deepstack_merger_list.*.linear_fc2",
}
_PIXTRAL = {
    "v.patch_embd": "vision_tower.patch_conv",
    "v.pre_ln": "vision_tower.ln_pre",
    "v.blk.*.ln1": "vision_tower.transformer.layers.*.attention_norm",
    "v.blk.*.attn_q": "vision_tower.transformer.layers.*.attention.q_proj",
    "v.blk.*.attn_k": "vision_tower.transformer.layers.*.attention.k_proj",
    "v.blk.*.attn_v": "vision_tower.transformer.layers.*.attention.v_proj",
    "v.blk.*.attn_out": "vision_tower.transformer.layers.*.attention.o_proj",
    "v.blk.*.ln2": "vision_tower.transformer.layers.*.ffn_norm",
    "v.blk.*.ffn_gate": "vision_tower.transformer.layers.*.feed_forward.gate_proj",
    "v.blk.*.ffn_up": "vision_tower.transformer.layers.*.feed_forward.up_proj",
    "v.blk.*.ffn_down": "vision_tower.transformer.layers.*.feed_forward.down_proj",
    "mm.input_norm": "multi_modal_projector.norm",
    "mm.patch_merger": "multi_modal_projector.patch_merger.merging_layer",
    "mm.1": "multi_modal_projector.linear_1",
    "mm.2": "multi_modal_projector.linear_2",
}
_MISTRAL3 = Whole("mistral3", "Mistral3ForConditionalGeneration")
_QWEN_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}

PROJECTORS: dict[str, Projector] = {
    "gemma3": Projector(
        models={"gemma3": Whole("gemma3", "Gemma3ForConditionalGeneration")},
        vision=lambda m: _siglip(m, "siglip_vision_model", vision_use_head=False),
        whole=lambda m: {"mm_tokens_per_image": _gemma3_tokens(m)},
        tokens={
            "image_token_index": SOFT_TOKEN,
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        spare=r"<unused\d+>|\[PAD\d+\]",
        named_tokens={
            "image_token": SOFT_TOKEN,
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        processor_class="Gemma3Processor",
        image_processor=_gemma3_images,
        processor=lambda m: {"image_seq_length": _gemma3_tokens(m)},
        names={
            **_in("model.vision_tower.", _SIGLIP),
            "mm.input_projection.weight": "model.multi_modal_projector.mm_input_projection_weight",
            "mm.soft_emb_norm": "model.multi_modal_projector.mm_soft_emb_norm",
        },
        layouts={"mm.soft_emb_norm.weight": lambda m, values: values - np.float32(1)},
        output=("mm.input_projection.weight", 1),
    ),
    "qwen2vl_merger": Projector(
        models={"qwen2vl": Whole("qwen2_vl", "Qwen2VLForConditionalGeneration", "qwen2_vl_text")},
        vision=_qwen2,
        tokens=_QWEN_TOKENS,
        processor_class="Qwen2VLProcessor",
        image_processor=lambda m: _qwen_images(m, QWEN2_PIXELS),
        names=_in("model.visual.", _QWEN2),
        output=("mm.2.weight", 0),
    ),
    "qwen2.5vl_merger": Projector(
        models={
            "qwen2vl": Whole("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text")
        },
        vision=_qwen25,
        tokens=_QWEN_TOKENS,
        processor_class="Qwen2_5_VLProcessor",
        image_processor=lambda m: _qwen_images(m, QWEN2_PIXELS),
        names=_in("model.visual.", _QWEN25),
        output=("mm.2.weight", 0),
    ),
    "qwen3vl_merger": Projector(
        models={
            "qwen3vl": Whole("qwen3_vl", "Qwen3VLForConditionalGeneration", "qwen3_vl_text"),
            "qwen35": Whole("qwen3_5", "Qwen3_5ForConditionalGeneration"),
            "qwen35moe": Whole("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
        },
        vision=_qwen3,
        tokens=_QWEN_TOKENS,
        processor_class="Qwen3VLProcessor",
        image_processor=lambda m: _qwen_images(m, QWEN3_PIXELS),
        names=_in("model.visual.", _QWEN3),
        output=("mm.2.weight", 0),
    ),
    "pixtral": Projector(
        models={"mistral3": _MISTRAL3, "llama": _MISTRAL3},
        vision=_pixtral,
        whole=lambda m: {
            "spatial_merge_size": integer(m, "vision.spatial_merge_size"),
            "multimodal_projector_bias": "mm.1.bias" in m.tensors,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
        },
        tokens={"image_token_index": "[IMG]"},
        processor_class="PixtralProcessor",
        image_processor=lambda m: {
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": integer(m, "vision.patch_size"),
            "size": {"longest_edge": integer(m, "vision.image_size")},
            **_normalisation(m),
        },
        processor=lambda m: {
            "patch_size": integer(m, "vision.patch_size"),
            "spatial_merge_size": integer(m, "vision.spatial_merge_size"),
        },
        names=_in("model.", _PIXTRAL),
        layouts={f"v.blk.*.attn_{part}.weight": _split_pairs for part in "qk"},
        unused=frozenset({"v.token_embd.img_break"}),
        output=("mm.2.weight", 0),
    ),
    "idefics3": Projector(
        models={"llama": Whole("idefics3", "Idefics3ForConditionalGeneration")},
        vision=lambda m: _siglip(m, "idefics3_vision"),
        whole=lambda m: {"scale_factor": _idefics3_scale(m)},
        tokens={"image_token_id": "<image>"},
        processor_class="Idefics3Processor",
        image_processor=_idefics3_images,
        processor=lambda m: {"image_seq_len": _tokens(m, _idefics3_scale(m))},
        names={
            **_in("model.vision_model.", _SIGLIP),
            "mm.model.fc": "model.connector.modality_projection.proj",
        },
        output=("mm.model.fc.weight", 0),
    ),
}
"""The entries by `clip.projector_type`."""
