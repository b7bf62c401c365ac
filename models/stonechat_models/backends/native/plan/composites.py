"""Models of several parts whose language model the native backend runs.

The defaults are those of the classes in transformers. The other parts, such as a vision tower, are
not computed here.
"""

from dataclasses import replace

from stonechat_models.backends.native.plan.families import FAMILIES, Family
from stonechat_models.backends.native.plan.mixtures import Experts, read_qwen3_experts
from stonechat_models.backends.native.plan.rope import RopeAxes
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import UnsupportedModelError

TEXT_PARTS = {
    "audioflamingo3": "qwen2",
    "gemma3": "gemma3_text",
    "glmasr": "llama",
    "idefics3": "llama",
    "internvl": "qwen2",
    "lfm2_vl": "lfm2",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "musicflamingo": "qwen2",
    "qwen2_audio": "qwen2",
    "qwen3_asr": "qwen3",
    "smolvlm": "llama",
    "voxtral": "llama",
}
"""The usual type of the language model of each type. The config may name another one."""
_QWEN2_VL = replace(
    FAMILIES["qwen2"],
    theta=1e6,
    eps=1e-5,
    local=lambda config, layer: layer >= config.keys.read("max_window_layers", int, 80),
    rope_axes=RopeAxes((16, 24, 24)),
)
_QWEN3_AXES = RopeAxes((24, 20, 20), interleaved=True)


def _qwen3_vl_experts(config: HFConfig) -> Experts:
    """Its router always scales the weights of a token's experts."""
    return replace(read_qwen3_experts(config), scale_chosen=True)


KNOWN_TEXT_PARTS = frozenset(
    {"gemma3_text", "lfm2", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"}
)
"""Types that read the embeddings of images as they are. Others scale them, or none is known."""
OWN_TEXT_PARTS: dict[str, Family] = {
    "minicpmv4_6": replace(FAMILIES["qwen3_5_text"], rope_axes=None),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_VL,
    "qwen3_vl": replace(
        FAMILIES["qwen3"], theta=5e5, head_dim=128, has_windows=False, rope_axes=_QWEN3_AXES
    ),
    "qwen3_vl_moe": replace(
        FAMILIES["qwen3_moe"],
        theta=5e5,
        has_windows=False,
        experts=_qwen3_vl_experts,
        rope_axes=_QWEN3_AXES,
    ),
}
"""Types with a language model of their own."""
ONLY_GGUF = frozenset({"qwen3_vl_moe"})
"""Types whose folders store the matrices of experts transposed."""
PREFIXES = ("model.", "model.language_model.", "language_model.model.", "model.text_model.")
"""How the names of a language model's tensors begin in files."""
IMAGE_TOKENS = {
    "gemma3": 262144,
    "idefics3": 128257,
    "internvl": 151667,
    "lfm2_vl": 396,
    "llava": 32000,
    "llava_next": 32000,
    "llava_onevision": 151646,
    "minicpmv4_6": 248056,
    "mistral3": 10,
    "qwen2_vl": 151655,
    "qwen2_5_vl": 151655,
    "qwen3_vl": 151655,
    "qwen3_vl_moe": 151655,
    "qwen3_5": 248056,
    "qwen3_5_moe": 248056,
    "smolvlm": 128257,
}
"""The types that take images, and their placeholder token if the config does not say."""
AUDIO_TOKENS = {
    "audioflamingo3": 151669,
    "glmasr": 59260,
    "musicflamingo": 151669,
    "qwen2_audio": 151646,
    "qwen3_asr": 151676,
    "voxtral": 24,
}
"""The types that take audio, and their placeholder token if the config does not say."""
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
HEAD_PREFIXES = tuple(name.removesuffix("weight") for name in HEADS)
DRAFT_PREFIX = "mtp."
"""How the names of weights begin that draft tokens, which are not used here."""


def family_of(config: HFConfig) -> Family:
    """Return the family of a model, or of its language model if it has several parts.

    Raises `UnsupportedModelError` if the native backend does not have it.
    """
    kind = config.model_type
    family = FAMILIES.get(kind) or OWN_TEXT_PARTS.get(kind)
    if family is None and kind in TEXT_PARTS:
        part = config.keys.section("text_config").read("model_type", str, TEXT_PARTS[kind])
        kind = f"{kind} with a text part of type {part}"
        family = FAMILIES[part] if part in KNOWN_TEXT_PARTS else None
    if family is None:
        raise UnsupportedModelError(
            f"models of type {kind} are not supported by the native backend"
        )
    return family


def has_parts(config: HFConfig) -> bool:
    """Whether a model has other parts than its language model."""
    return config.model_type in TEXT_PARTS or config.model_type in OWN_TEXT_PARTS
