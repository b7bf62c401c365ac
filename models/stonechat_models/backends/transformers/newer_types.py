"""Types of models that transformers 5.17, the oldest one that Stonechat runs with, lacks."""

TYPES_BY_VERSION = {
    "5.18": ("hyperclovax_vision_v2", "minicpmv4_7", "nemotron_h_omni"),
    "5.20": ("bailing_hybrid", "beam", "kolibri1", "molmo2", "muse_spark", "unlimited_ocr"),
    "5.21": ("flint", "minicpm_ocr"),
    "5.22": ("mistral_large4",),
    "5.23": (
        *("dots3_note", "dots3_note_text", "granite_docling", "inkling2", "inkling2_text"),
        *("internlm3", "iquestcoder", "lfm3", "lfm3_vl"),
    ),
    "5.24": (
        *("apertus1p5", "apertus1p5_text", "dory", "exaone", "hy_v4_vl", "inkling2_loop"),
        *("inkling2_loop_text", "lara_mini", "sarvam_mla", "sarvam_moe"),
    ),
}
"""Those that complete text, by the first version that has them."""


def version_hint(model_type: str) -> str:
    """Return the end of a message: which version of transformers has a type, if that is known."""
    versions = (version for version, types in TYPES_BY_VERSION.items() if model_type in types)
    version = next(versions, None)
    return f"; version {version} has it" if version else ""
