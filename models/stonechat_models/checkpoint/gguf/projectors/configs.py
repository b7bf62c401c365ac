"""What transformers' configs and processors say of a vision part, by its file.

Metadata keys are those of the format, behind `clip.`. What no file says has the value of the
published models.
"""

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

QWEN_FRAMES = 2
"""Kernels of the patch embedding, one for each of two frames of a video."""


def _depth(mmproj: GgufFile) -> int:
    return integer(mmproj, "vision.block_count", limit=MAX_LAYERS)


def siglip(mmproj: GgufFile, model_type: str, **fixed: object) -> Config:
    """Return `vision_config` of a SigLIP tower, or of one with the same keys."""
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


def siglip2(mmproj: GgufFile) -> Config:
    """Return `vision_config` of a SigLIP 2 tower, which takes images of any size."""
    num_patches = width_of(mmproj, "v.position_embd.weight", 0)
    return siglip(mmproj, "siglip2_vision_model", vision_use_head=False, num_patches=num_patches)


def _activation(mmproj: GgufFile) -> str:
    if flag(mmproj, "use_gelu", False):
        return "gelu_pytorch_tanh"
    return "silu" if flag(mmproj, "use_silu", False) else "quick_gelu"


def pixtral(mmproj: GgufFile) -> Config:
    """Return `vision_config` of a Pixtral tower."""
    return _with_exact_gelu(siglip(mmproj, "pixtral"))


def _with_exact_gelu(config: Config) -> Config:
    """Return a config with the exact GELU: no file says which one it means."""
    activation = config["hidden_act"]
    return config | {"hidden_act": "gelu" if activation == "gelu_pytorch_tanh" else activation}


def split_pairs(mmproj: GgufFile, rows: np.ndarray) -> np.ndarray:
    """Return query or key rows with the halves of their rotary pairs apart."""
    return split_rope_pairs(rows, integer(mmproj, "vision.attention.head_count"))


def normalisation(mmproj: GgufFile) -> Config:
    """Return the mean and the deviation of colours, for the processor."""
    return {name: numbers(mmproj, f"clip.vision.{name}", 3) for name in ("image_mean", "image_std")}


def _patches(mmproj: GgufFile) -> int:
    """Return how many patches each side of an image has."""
    return integer(mmproj, "vision.image_size") // integer(mmproj, "vision.patch_size")


def tokens(mmproj: GgufFile, scale: int) -> int:
    """Return how many tokens an image becomes if `scale` patches of each side make one."""
    if _patches(mmproj) % scale:
        raise refusal(mmproj, f"{_patches(mmproj)} patches are not a multiple of {scale}")
    return (_patches(mmproj) // scale) ** 2


def gemma3_tokens(mmproj: GgufFile) -> int:
    """Return how many tokens an image becomes."""
    return tokens(mmproj, integer(mmproj, "vision.projector.scale_factor", 4))


def gemma3_images(mmproj: GgufFile) -> Config:
    """Return the settings of its image processor."""
    size = integer(mmproj, "vision.image_size")
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": size, "width": size},
        **normalisation(mmproj),
    }


def idefics3_scale(mmproj: GgufFile) -> int:
    """Return how many patches of each side make a token."""
    return integer(mmproj, "vision.projector.scale_factor")


def idefics3_images(mmproj: GgufFile) -> Config:
    """Return the settings of its image processor."""
    size = integer(mmproj, "vision.image_size")
    longest = integer(mmproj, "vision.preproc_image_size", 4 * size)
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": longest},
        "max_image_size": {"longest_edge": size},
        "do_image_splitting": True,
        **normalisation(mmproj),
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


def qwen2(mmproj: GgufFile) -> Config:
    """The size of the feed-forward blocks is that of tensors: the file names another one."""
    width, name = integer(mmproj, "vision.embedding_length"), "v.blk.0.ffn_up.weight"
    inner = max(width_of(mmproj, name, 0), width_of(mmproj, name, 1))  # the two may be swapped
    return {
        **_qwen(mmproj),
        "embed_dim": width,
        "hidden_size": width_of(mmproj, "mm.2.weight", 0),
        "mlp_ratio": inner // width,
    }


def qwen25(mmproj: GgufFile) -> Config:
    """Return `vision_config`."""
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


def qwen3(mmproj: GgufFile) -> Config:
    """Return `vision_config`."""
    return {
        **_qwen(mmproj),
        **_qwen_widths(mmproj),
        "num_position_embeddings": width_of(mmproj, "v.position_embd.weight", 0),
        "deepstack_visual_indexes": deep_layers(mmproj),
    }


def qwen_images(mmproj: GgufFile, pixels: tuple[int, int]) -> Config:
    """Return the settings of its image processor. `pixels`: the least and the most by default."""
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
        **normalisation(mmproj),
    }


def gemma4(mmproj: GgufFile) -> Config:
    """Return `vision_config`."""
    heads = integer(mmproj, "vision.attention.head_count")
    head_dim = width_of(mmproj, "v.blk.0.attn_q.weight", 0) // max(1, heads)
    return {
        "model_type": "gemma4_vision",
        "hidden_size": integer(mmproj, "vision.embedding_length"),
        "intermediate_size": integer(mmproj, "vision.feed_forward_length"),
        "num_hidden_layers": _depth(mmproj),
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "num_key_value_heads": width_of(mmproj, "v.blk.0.attn_k.weight", 0) // max(1, head_dim),
        "rms_norm_eps": positive(mmproj, "vision.attention.layer_norm_epsilon"),
        "patch_size": integer(mmproj, "vision.patch_size"),
        "pooling_kernel_size": gemma4_kernel(mmproj),
        "position_embedding_size": width_of(mmproj, "v.position_embd.weight", 1),
        "use_clipped_linears": "v.blk.0.attn_q.input_min" in mmproj.tensors,
        "standardize": "v.std_scale" in mmproj.tensors,
    }


def gemma4_kernel(mmproj: GgufFile) -> int:
    """Return how many patches of each side make a token."""
    return integer(mmproj, "vision.projector.scale_factor", 3)


def gemma4_text(gguf: GgufFile) -> Config:
    """The small models, which have embeddings in each layer, attend to images as to text."""
    has_own = integer(gguf, "embedding_length_per_layer_input", 0, least=0)
    return {"use_bidirectional_attention": None if has_own else "vision"}


def patches_first(mmproj: GgufFile, kernel: np.ndarray) -> np.ndarray:
    """Return a patch embedding as a matrix whose columns are pixels, each with its colours."""
    return kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)


def internvl(mmproj: GgufFile) -> Config:
    """Return `vision_config`."""
    config = _with_exact_gelu(siglip(mmproj, "internvl_vision"))
    return config | {
        "image_size": [config["image_size"]] * 2,
        "patch_size": [config["patch_size"]] * 2,
        "attention_bias": "v.blk.0.attn_q.bias" in mmproj.tensors,
        "use_qk_norm": "v.blk.0.attn_q_norm.weight" in mmproj.tensors,
        "norm_type": "layer_norm" if "v.blk.0.ln1.bias" in mmproj.tensors else "rms_norm",
    }


def internvl_tokens(mmproj: GgufFile) -> int:
    """Return how many tokens a tile of an image becomes."""
    return tokens(mmproj, integer(mmproj, "vision.projector.scale_factor"))


def internvl_images(mmproj: GgufFile) -> Config:
    """Return the settings of its image processor."""
    size = integer(mmproj, "vision.image_size")
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": size, "width": size},
        "crop_to_patches": True,
        "min_patches": integer(mmproj, "vision.preproc_min_tiles", 1),
        "max_patches": integer(mmproj, "vision.preproc_max_tiles", 12),
        **normalisation(mmproj),
    }


def width_of(mmproj: GgufFile, name: str, axis: int) -> int:
    """Return a dimension of a tensor. Raises `UnsupportedModelError` if there is none."""
    tensor = mmproj.tensors.get(name)
    if tensor is None or len(tensor.shape) < 2:
        raise refusal(mmproj, f"{name} is missing or not a matrix")
    return tensor.shape[axis]
