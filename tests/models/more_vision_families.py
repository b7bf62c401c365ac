"""More families of models that see. Fewer people run them, and tests of them run nightly."""

from dataclasses import replace

from tests.models.vision_families import (
    CLIP,
    GLM,
    GLM_PROCESSOR,
    HALF,
    QWEN2_PROCESSOR,
    QWEN3_PROCESSOR,
    VisionFamily,
    qwen,
    sections,
)

NEED_TORCHVISION = ("cohere2_vision", "kimi_k25")
"""Families whose processor has no form for Pillow alone."""

MORE_FAMILIES: dict[str, VisionFamily] = {
    "exaone4_5": VisionFamily(
        image="<vision><|image_pad|></vision>",
        token="<|image_pad|>",
        tokens=("<vision>", "</vision>", "<|video_pad|>"),
        named_tokens={"image_token": "<|image_pad|>"},
        image_processor=QWEN2_PROCESSOR,
        vision={"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
    ),
    "lfm3_vl": qwen({"patch_size": 16}, {**QWEN3_PROCESSOR}),
    "video_llama_3": VisionFamily(
        image="<image>",
        token="<image>",
        named_tokens={"image_token": "<image>", "video_token": "<video>"},
        image_processor={
            "image_processor_type": "VideoLlama3ImageProcessor",
            "patch_size": 14,
            "merge_size": 2,
            **HALF,
        },
        vision={"patch_size": 14},
    ),
    "paddleocr_vl": VisionFamily(
        image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        token="<|IMAGE_PLACEHOLDER|>",
        named_tokens={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        tokens=("<|IMAGE_START|>", "<|IMAGE_END|>"),
        image_processor={
            "image_processor_type": "PaddleOCRVLImageProcessor",
            "patch_size": 14,
            "size": {"shortest_edge": 3136, "longest_edge": 2359296},
            **HALF,
        },
        vision={"patch_size": 14, "image_size": 384},
        text=sections(4, 2, 2),
    ),
    "ernie4_5_vl_moe": VisionFamily(
        image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        token="<|IMAGE_PLACEHOLDER|>",
        named_tokens={
            "image_token": "<|IMAGE_PLACEHOLDER|>",
            "image_start_token": "<|IMAGE_START|>",
            "image_end_token": "<|IMAGE_END|>",
            "video_token": "<|VIDEO_PLACEHOLDER|>",
            "video_start_token": "<|VIDEO_START|>",
            "video_end_token": "<|VIDEO_END|>",
        },
        image_processor={"image_processor_type": "Ernie4_5_VLMoeImageProcessor", **CLIP},
        vision={"patch_size": 14},
    ),
    "deepseek_vl": VisionFamily(
        image="<image>",
        token="<image>",
        image_processor={
            "image_processor_type": "DeepseekVLImageProcessor",
            "size": {"height": 96, "width": 96},  # published: 384
            **HALF,
        },
        processor={"num_image_tokens": 36},
        vision={"patch_size": 16, "image_size": 96},
        named_tokens={"image_token": "<image>"},
    ),
    "lighton_ocr": VisionFamily(
        image="<|image_pad|>",
        token="<|image_pad|>",
        named_tokens={
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
        image_processor={
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": 14,
            "size": {"longest_edge": 1540},
            **CLIP,
        },
        processor={"patch_size": 14, "spatial_merge_size": 2},
        vision={"patch_size": 14, "image_size": 1540, "head_dim": 8},
    ),
    "vipllava": VisionFamily(
        image="<image>\n",
        token="<image>",
        image_processor={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 112},  # published: 336
            "crop_size": {"height": 112, "width": 112},
            **CLIP,
        },
        processor={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        vision={"image_size": 112, "patch_size": 14, "num_hidden_layers": 3},
        config={"vision_feature_layers": [-2, -1]},
    ),
    "lfm2_vl": VisionFamily(
        image="<image>",
        token="<image>",
        tokens=(
            *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
            *(f"<|img_row_{r}_col_{c}|>" for r in range(1, 5) for c in range(1, 5)),
        ),
        image_processor={
            "image_processor_type": "Lfm2VlImageProcessorFast",
            "encoder_patch_size": 16,
            "tile_size": 64,  # published: 512
            "min_image_tokens": 2,  # published: 64
            "max_image_tokens": 4,  # published: 256
            "max_tiles": 4,  # published: 10
            **HALF,
        },
        vision={"patch_size": 16, "num_patches": 256, "vision_use_head": False},
    ),
    "cohere2_vision": VisionFamily(
        image="<|IMG_PATCH|>",
        token="<|IMG_PATCH|>",
        named_tokens={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
        image_processor={
            "image_processor_type": "Cohere2VisionImageProcessorFast",
            "size": {"height": 128, "width": 128},  # published: 512
            "patch_size": 4,  # of embeddings; published: 16
            "max_patches": 4,
            **HALF,
        },
        vision={"image_size": 128, "patch_size": 16},
        config={"downsample_factor": 2, "alignment_intermediate_size": 64},
    ),
    "kimi_k25": VisionFamily(
        image="<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n",
        token="<|media_pad|>",
        tokens=("<|media_begin|>", "<|media_content|>", "<|media_end|>"),
        named_tokens={"image_token": "<|media_pad|>"},
        image_processor={"image_processor_type": "Kimi_K25ImageProcessor", **HALF},
        vision={"patch_size": 14},
        config={"projection_hidden_size": 32},
    ),
    "glm_ocr": replace(
        GLM,
        processor_class="Glm46VProcessor",
        image_processor=GLM_PROCESSOR | {"image_processor_type": "Glm46VImageProcessor"},
    ),
    "deepseek_ocr2": VisionFamily(
        image="<image>\n",
        token="<image>",
        image_processor={
            "image_processor_type": "DeepseekOcr2ImageProcessor",
            "size": {"height": 1024, "width": 1024},
            "tile_size": 768,
            "max_patches": 2,  # published: 6
            **HALF,
        },
        vision={
            "sam_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "output_channels": 16,
                "global_attn_indexes": [],
                "downsample_channels": [16, 32],
                "image_size": 1024,
            },
            "encoder_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
        },
    ),
    "llama4": VisionFamily(
        begins=True,
        image="<|image|>",
        token="<|patch|>",
        tokens=(
            *("<|image|>", "<|image_start|>", "<|image_end|>"),
            *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        ),
        image_processor={
            "image_processor_type": "Llama4ImageProcessorFast",
            "size": {"height": 56, "width": 56},  # published: 336
            "max_patches": 6,  # published: 16
            **HALF,
        },
        processor={"patch_size": 14, "fake_image_token": "<|image|>"},
        vision={
            "image_size": 56,
            "patch_size": 14,
            "intermediate_size": 128,
            "projector_input_dim": 24,
            "projector_output_dim": 24,
            "vision_output_dim": 24,
        },
        text={"attention_chunk_size": 64, "floor_scale": 32, "no_rope_layers": [1, 0, 1]},
    ),
    "minicpmv4_6": VisionFamily(
        image="<|image_pad|>",
        token="<|image_pad|>",
        named_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "image_start_token": "<image>",
            "image_end_token": "</image>",
            "slice_start_token": "<slice>",
            "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>",
            "image_id_end_token": "</image_id>",
        },
        image_processor={
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            "scale_resolution": 112,  # published: 448
            **HALF,
        },
        vision={"patch_size": 14, "image_size": 112},
        config={"insert_layer_id": 0},
    ),
    "qianfan_ocr": VisionFamily(
        image="<image>",
        token="<IMG_CONTEXT>",
        named_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
        },
        tokens=("<image>",),
        image_processor={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 224, "width": 224},  # published: 448
            "min_patches": 1,
            "max_patches": 4,  # published: 12
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        processor={"image_seq_length": 64},
        vision={"image_size": [224, 224], "patch_size": [14, 14]},
        config={"downsample_ratio": 0.5, "image_seq_length": 64},
    ),
}
