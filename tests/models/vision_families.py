"""What folders of models that see hold, family by family: real settings of their processors.

Sizes that only cost time are smaller than published.
"""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class VisionFamily:
    """What a family's folder holds. Everything else has the defaults of its classes."""

    image: str
    """What the template writes for an image."""
    token: str
    """The placeholder token, whose place embeddings take."""
    image_processor: dict[str, Any]
    vision: dict[str, Any]
    """Of the vision part of the config, what goes with the processor."""
    config: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    named_tokens: dict[str, str] = field(default_factory=dict)
    """Special tokens that are attributes of the tokenizer."""
    tokens: tuple[str, ...] = ()
    """Further special tokens."""
    processor_class: str = ""
    """Empty: that of the type."""
    model_type: str = ""
    """Empty: the family's name."""
    begins: bool = False
    """Whether a prompt begins with a BOS token, which the template writes."""


CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN3_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 4096, "longest_edge": 16777216},  # published: shortest_edge 65536
    **HALF,
}


def sections(*sections: int, **changes: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    return {"rope_parameters": rope | changes}


def qwen(vision: dict[str, Any], image_processor: dict[str, Any], **text: Any) -> VisionFamily:
    return VisionFamily(
        image=QWEN_IMAGE,
        token="<|image_pad|>",
        tokens=QWEN_TOKENS,
        image_processor=image_processor,
        vision=vision,
        text=text,
    )


QWEN2_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 3136,
    "max_pixels": 12845056,
    **CLIP,
}
QWEN3_VISION = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 64,
    "depth": 3,
}
GLM_PROCESSOR = {
    "image_processor_type": "Glm4vImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    **CLIP,
}
GLM = VisionFamily(
    image="<|begin_of_image|><|image|><|end_of_image|>",
    token="<|image|>",
    tokens=(
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
        "<|video|>",
    ),
    image_processor=GLM_PROCESSOR,
    vision={
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "image_size": 112,
        "out_hidden_size": 32,
    },
    text=sections(2, 1, 1, partial_rotary_factor=1.0),
)
GEMMA4 = VisionFamily(
    begins=True,
    image="<|image|>",
    token="<|image|>",
    named_tokens={
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    tokens=("<|video|>",),
    image_processor={
        "image_processor_type": "Gemma4ImageProcessor",
        "patch_size": 16,
        "max_soft_tokens": 70,  # published: 280
        "pooling_kernel_size": 3,
    },
    processor={"image_seq_length": 70},
    vision={
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "default_output_length": 70,
        "standardize": True,
    },
    text={
        "use_bidirectional_attention": "vision",
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
    },
)
LLAVA_SELECT = {"vision_feature_select_strategy": "default", "vision_feature_layer": -2}

FAMILIES: dict[str, VisionFamily] = {
    "qwen2_vl": qwen(
        {"patch_size": 14, "spatial_merge_size": 2, "embed_dim": 32, "hidden_size": 32},
        QWEN2_PROCESSOR,
        **sections(2, 1, 1),
    ),
    "qwen2_5_vl": qwen(
        {
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 56,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "depth": 2,
        },
        QWEN2_PROCESSOR,
        **sections(2, 1, 1),
    ),
    "qwen3_vl": qwen(
        {**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        QWEN3_PROCESSOR,
        num_hidden_layers=3,
        **sections(4, 2, 2, mrope_interleaved=True),
    ),
    "qwen3_vl_moe": qwen(
        {**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        QWEN3_PROCESSOR,
        num_hidden_layers=3,
        **sections(4, 2, 2, mrope_interleaved=True),
    ),
    "qwen3_5": qwen(
        QWEN3_VISION,
        QWEN3_PROCESSOR,
        **sections(4, 2, 2, mrope_interleaved=True, partial_rotary_factor=1.0),
    ),
    "qwen3_5_moe": qwen(
        QWEN3_VISION,
        QWEN3_PROCESSOR,
        **sections(4, 2, 2, mrope_interleaved=True, partial_rotary_factor=1.0),
    ),
    "gemma3": VisionFamily(
        begins=True,
        image="<start_of_image>",
        token="<image_soft_token>",
        named_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        image_processor={  # published: 896 x 896, of which 256 tokens are made
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 224, "width": 224},
            **HALF,
        },
        processor={"image_seq_length": 64},
        vision={"image_size": 224, "patch_size": 14},
        config={"mm_tokens_per_image": 64},
    ),
    "gemma4": GEMMA4,
    "gemma4_small": replace(
        GEMMA4,
        model_type="gemma4",
        vision=GEMMA4.vision | {"use_clipped_linears": True},
        text={
            "use_bidirectional_attention": None,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 300,
            "num_kv_shared_layers": 0,
        },
    ),
    "mistral3": VisionFamily(
        begins=True,
        image="[IMG]",
        token="[IMG]",
        tokens=("[IMG_BREAK]", "[IMG_END]"),
        image_processor={
            "image_processor_type": "PixtralImageProcessorFast",
            "patch_size": 14,
            "size": {"longest_edge": 1540},
            **CLIP,
        },
        processor={"patch_size": 14, "spatial_merge_size": 2},
        vision={"patch_size": 14, "image_size": 1540, "head_dim": 8},
        config={"spatial_merge_size": 2, "vision_feature_layer": -1},
    ),
    "smolvlm": VisionFamily(
        image="<image>",
        token="<image>",
        tokens=(
            "<fake_token_around_image>",
            "<global-img>",
            "<end_of_utterance>",
            *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)),
        ),
        image_processor={
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 512},  # published: 2048
            "max_image_size": {"longest_edge": 256},  # published: 512
            "do_image_splitting": True,
            **HALF,
        },
        processor={"image_seq_len": 16},
        vision={"patch_size": 16, "image_size": 256},
        config={"scale_factor": 4},
    ),
    "idefics3": VisionFamily(
        image="<image>",
        token="<image>",
        tokens=(
            "<fake_token_around_image>",
            "<global-img>",
            "<end_of_utterance>",
            *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)),
        ),
        image_processor={
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 336},  # published: 1456
            "max_image_size": {"longest_edge": 168},  # published: 364
            "do_image_splitting": True,
            **HALF,
        },
        processor={"image_seq_len": 36},
        vision={"patch_size": 14, "image_size": 168},
        config={"scale_factor": 2},
    ),
    "internvl": VisionFamily(
        image="<IMG_CONTEXT>\n",
        token="<IMG_CONTEXT>",
        named_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        image_processor={
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": {"height": 224, "width": 224},  # published: 448
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,  # published: 12
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        processor={"image_seq_length": 64},
        vision={"image_size": [224, 224], "patch_size": [14, 14]},
        config={"downsample_ratio": 0.5, "image_seq_length": 64},
    ),
    "llava": VisionFamily(
        image="<image>\n",
        token="<image>",
        image_processor={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            **CLIP,
        },
        processor={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        vision={"image_size": 336, "patch_size": 14},
        config=LLAVA_SELECT,
    ),
    "llava_next": VisionFamily(
        image="<image>\n",
        token="<image>",
        image_processor={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 112},  # published: 336
            "crop_size": {"height": 112, "width": 112},
            "image_grid_pinpoints": [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]],
            **CLIP,
        },
        processor={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        vision={"image_size": 112, "patch_size": 14},
        config={
            **LLAVA_SELECT,
            "image_grid_pinpoints": [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]],
        },
    ),
    "llava_onevision": VisionFamily(
        image="<image>",
        token="<image>",
        tokens=("<video>",),
        image_processor={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 112, "width": 112},  # published: 384
            "image_grid_pinpoints": [[112, 112], [112, 224], [224, 112], [224, 224]],
            **HALF,
        },
        processor={
            "num_image_tokens": 64,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        vision={"image_size": 112, "patch_size": 14, "vision_use_head": False},
        config={
            "image_grid_pinpoints": [[112, 112], [112, 224], [224, 112], [224, 224]],
            "vision_aspect_ratio": "anyres_max_9",
        },
    ),
    "glm4v": GLM,
    "glm4v_moe": GLM,
    "glm46v": replace(
        GLM, image_processor={**GLM_PROCESSOR, "image_processor_type": "Glm46VImageProcessor"}
    ),
    "paligemma": VisionFamily(
        begins=True,
        image="<image>",
        token="<image>",
        image_processor={
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 224, "width": 224},
            "image_seq_length": 256,
            **HALF,
        },
        vision={"image_size": 224, "patch_size": 14, "num_image_tokens": 256},
    ),
    "aya_vision": VisionFamily(
        image="<image>",
        token="<|IMG_PATCH|>",
        tokens=(
            "<image>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_LINE_BREAK|>",
            "TILE_GLOBAL",
            *(f"TILE_{i}" for i in range(1, 13)),
        ),
        image_processor={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 168, "width": 168},  # published: 364
            "crop_to_patches": True,
            "max_patches": 4,  # published: 12
            **HALF,
        },
        processor={"img_size": 168, "patch_size": 14, "downsample_factor": 2},
        vision={"image_size": 168, "patch_size": 14},
        config={"downsample_factor": 2, "vision_feature_layer": -1},
    ),
}
