"""Which models take videos: those that take images, of types whose rules for frames are known."""

from dataclasses import replace
from importlib.util import find_spec

from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.model_info import ModelInfo, VideoInfo

VIDEO_TYPES = frozenset(
    {
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        *("gemma4", "glm4v", "glm4v_moe", "internvl", "smolvlm"),
    }
)
VIDEO_TOKENS = dict.fromkeys(("glm4v", "glm4v_moe", "internvl", "smolvlm"), "image_token_id")
"""The name of the placeholder in the config, if it is that of images."""


def with_videos(info: ModelInfo, config: HFConfig) -> ModelInfo:
    """Return a model's info, which says whether it takes videos. It says so of images already."""
    key = VIDEO_TOKENS.get(config.model_type, "video_token_id")
    token_id = config.raw.get(key)
    if not isinstance(token_id, int) or (info.images is None and not info.image_refusal):
        return info
    if info.images is None:
        refusal = f"it takes no images: {info.image_refusal}"
    elif config.model_type not in VIDEO_TYPES:
        refusal = f"videos are not read for models of the type {config.model_type}"
    elif find_spec("av") is None:
        refusal = "videos need av: pip install 'stonechat[video]'"
    else:
        return replace(info, video=VideoInfo(token_id=token_id))
    return replace(info, video_refusal=refusal)
