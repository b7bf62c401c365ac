"""The vision parts that llama.cpp keeps in files of their own (`mmproj`), by the projector's type.

An entry says how transformers configures such a part together with its language model, how the
model's processor is set, and where the tensors belong. Metadata keys are those of the format,
behind `clip.`. What no file says has the value of the published models.
"""

import numpy as np

from stonechat_models.checkpoint.gguf.metadata import integer
from stonechat_models.checkpoint.gguf.projectors import configs, names
from stonechat_models.checkpoint.gguf.projectors.projector import Projector, Whole, within

QWEN2_PIXELS, QWEN3_PIXELS = (3136, 12845056), (65536, 16777216)
GEMMA4_TOKENS = 280
"""The most that an image becomes."""
LFM2_LIMITS = {"tile_size": 512, "max_tiles": 10, "min_image_tokens": 64, "max_image_tokens": 256}
SOFT_TOKEN = "<image_soft_token>"


_INTERNVL_WHOLE = Whole("internvl", "InternVLForConditionalGeneration")
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
        tower=lambda m: configs.siglip(m, "siglip_vision_model", vision_use_head=False),
        whole=lambda m: {"mm_tokens_per_image": configs.gemma3_tokens(m)},
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
        prepare=configs.gemma3_images,
        processor=lambda m: {"image_seq_length": configs.gemma3_tokens(m)},
        names={
            **within("model.vision_tower.", names.SIGLIP),
            "mm.input_projection.weight": "model.multi_modal_projector.mm_input_projection_weight",
            "mm.soft_emb_norm": "model.multi_modal_projector.mm_soft_emb_norm",
        },
        layouts={"mm.soft_emb_norm.weight": lambda m, values: values - np.float32(1)},
        output=("mm.input_projection.weight", 1),
    ),
    "qwen2vl_merger": Projector(
        models={"qwen2vl": Whole("qwen2_vl", "Qwen2VLForConditionalGeneration", "qwen2_vl_text")},
        tower=configs.qwen2,
        tokens=_QWEN_TOKENS,
        processor_class="Qwen2VLProcessor",
        prepare=lambda m: configs.qwen_images(m, QWEN2_PIXELS),
        names=within("model.visual.", names.QWEN2),
        output=("mm.2.weight", 0),
    ),
    "qwen2.5vl_merger": Projector(
        models={
            "qwen2vl": Whole("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text")
        },
        tower=configs.qwen25,
        tokens=_QWEN_TOKENS,
        processor_class="Qwen2_5_VLProcessor",
        prepare=lambda m: configs.qwen_images(m, QWEN2_PIXELS),
        names=within("model.visual.", names.QWEN25),
        output=("mm.2.weight", 0),
    ),
    "qwen3vl_merger": Projector(
        models={
            "qwen3vl": Whole("qwen3_vl", "Qwen3VLForConditionalGeneration", "qwen3_vl_text"),
            "qwen3vlmoe": Whole(
                "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe_text"
            ),
            "qwen35": Whole("qwen3_5", "Qwen3_5ForConditionalGeneration"),
            "qwen35moe": Whole("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
        },
        tower=configs.qwen3,
        tokens=_QWEN_TOKENS,
        processor_class="Qwen3VLProcessor",
        prepare=lambda m: configs.qwen_images(m, QWEN3_PIXELS),
        names=within("model.visual.", names.QWEN3),
        output=("mm.2.weight", 0),
    ),
    "pixtral": Projector(
        models={"mistral3": _MISTRAL3, "llama": _MISTRAL3},
        tower=configs.pixtral,
        whole=lambda m: {
            "spatial_merge_size": integer(m, "vision.spatial_merge_size"),
            "multimodal_projector_bias": "mm.1.bias" in m.tensors,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
        },
        tokens={"image_token_index": "[IMG]"},
        processor_class="PixtralProcessor",
        prepare=lambda m: {
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": integer(m, "vision.patch_size"),
            "size": {"longest_edge": integer(m, "vision.image_size")},
            **configs.normalisation(m),
        },
        processor=lambda m: {
            "patch_size": integer(m, "vision.patch_size"),
            "spatial_merge_size": integer(m, "vision.spatial_merge_size"),
        },
        names=within("model.", names.PIXTRAL),
        layouts={f"v.blk.*.attn_{part}.weight": configs.split_pairs for part in "qk"},
        unused=frozenset({"v.token_embd.img_break"}),
        output=("mm.2.weight", 0),
    ),
    "idefics3": Projector(
        models={"llama": Whole("idefics3", "Idefics3ForConditionalGeneration")},
        tower=lambda m: configs.siglip(m, "idefics3_vision"),
        whole=lambda m: {"scale_factor": configs.idefics3_scale(m)},
        tokens={"image_token_id": "<image>"},
        processor_class="Idefics3Processor",
        prepare=configs.idefics3_images,
        processor=lambda m: {"image_seq_len": configs.tokens(m, configs.idefics3_scale(m))},
        names={
            **within("model.vision_model.", names.SIGLIP),
            "mm.model.fc": "model.connector.modality_projection.proj",
        },
        output=("mm.model.fc.weight", 0),
    ),
    "gemma4v": Projector(
        models={"gemma4": Whole("gemma4", "Gemma4ForConditionalGeneration")},
        text=configs.gemma4_text,
        tower=configs.gemma4,
        tokens={
            "image_token_id": "<|image|>",
            "boi_token_id": "<|image>",
            "eoi_token_id": "<image|>",
            "video_token_id": "<|video|>",
        },
        named_tokens={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        processor_class="Gemma4Processor",
        prepare=lambda m: {
            "image_processor_type": "Gemma4ImageProcessor",
            "patch_size": integer(m, "vision.patch_size"),
            "pooling_kernel_size": configs.gemma4_kernel(m),
            "max_soft_tokens": GEMMA4_TOKENS,
        },
        processor=lambda m: {"image_seq_length": GEMMA4_TOKENS},
        names={
            **within("model.vision_tower.", names.GEMMA4),
            "mm.input_projection": "model.embed_vision.embedding_projection",
        },
        layouts={
            "v.patch_embd.weight": configs.patches_first,
            **{
                f"{own}.{bound}": lambda m, values: values.reshape(())
                for own in names.GEMMA4_LINEARS
                for bound in names.BOUNDS
            },
        },
        output=("mm.input_projection.weight", 0),
    ),
    "lfm2": Projector(
        models={"lfm2": Whole("lfm2_vl", "Lfm2VlForConditionalGeneration")},
        tower=configs.siglip2,
        whole=lambda m: {
            "downsample_factor": integer(m, "vision.projector.scale_factor", 2),
            "projector_hidden_size": configs.width_of(m, "mm.1.weight", 0),
            "projector_hidden_act": "gelu",
            "projector_bias": "mm.1.bias" in m.tensors,
            "projector_use_layernorm": "mm.input_norm.weight" in m.tensors,
        },
        tokens={"image_token_id": "<image>"},
        processor_class="Lfm2VlProcessor",
        prepare=lambda m: {
            "image_processor_type": "Lfm2VlImageProcessor",
            "encoder_patch_size": integer(m, "vision.patch_size"),
            "downsample_factor": integer(m, "vision.projector.scale_factor", 2),
            **LFM2_LIMITS,
            **configs.normalisation(m),
        },
        names={
            **within("model.vision_tower.", names.SIGLIP),
            "mm.input_norm": "model.multi_modal_projector.layer_norm",
            "mm.1": "model.multi_modal_projector.linear_1",
            "mm.2": "model.multi_modal_projector.linear_2",
        },
        layouts={"v.patch_embd.weight": configs.patches_first},
        output=("mm.2.weight", 0),
    ),
    "internvl": Projector(
        models=dict.fromkeys(("qwen2", "qwen3", "qwen3moe", "llama"), _INTERNVL_WHOLE),
        tower=configs.internvl,
        whole=lambda m: {
            "downsample_ratio": 1 / integer(m, "vision.projector.scale_factor"),
            "image_seq_length": configs.internvl_tokens(m),
        },
        tokens={
            "image_token_id": "<IMG_CONTEXT>",
            "start_image_token_id": "<img>",
            "end_image_token_id": "</img>",
        },
        named_tokens={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        processor_class="InternVLProcessor",
        prepare=configs.internvl_images,
        processor=lambda m: {"image_seq_length": configs.internvl_tokens(m)},
        names=within("model.", names.INTERNVL),
        layouts={
            "v.class_embd": lambda m, values: values.reshape(1, 1, -1),
            "v.position_embd.weight": lambda m, values: values.reshape(1, -1, values.shape[-1]),
        },
        output=("mm.model.mlp.3.weight", 0),
    ),
}
"""The entries by `clip.projector_type`."""
