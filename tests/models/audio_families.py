"""What folders of models that hear hold, family by family: real settings of their processors.

Clips are shorter than published ones may be: windows of 2 seconds instead of 30.
"""

from dataclasses import dataclass, field
from typing import Any

from tests.models.vision_families import GEMMA4


@dataclass(frozen=True)
class AudioFamily:
    """What a family's folder holds. Everything else has the defaults of its classes."""

    audio: str
    """What the template writes for a clip."""
    token: str
    """The placeholder token, whose place embeddings take."""
    processor_class: str
    feature_extractor: dict[str, Any]
    tower: dict[str, Any] = field(default_factory=dict)
    """Of the audio part of the config, what differs."""
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    """Of the vision part of the config, what differs."""
    image_processor: dict[str, Any] = field(default_factory=dict)
    """Empty: the family's models hear, and see nothing."""
    config_tokens: dict[str, str] = field(default_factory=dict)
    """Attributes of the config, and the tokens whose ids they have."""
    processor: dict[str, Any] = field(default_factory=dict)
    named_tokens: dict[str, str] = field(default_factory=dict)
    """Special tokens that are attributes of the tokenizer."""
    tokens: tuple[str, ...] = ()
    """Further special tokens."""
    max_clips: int = 4
    """How many clips the processor takes for one text."""


WHISPER = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 2,  # published: 30
    "n_samples": 32000,
    "nb_max_frames": 200,
    "return_attention_mask": True,
}
QWEN_TOKENS = {
    "audio_token": "<|AUDIO|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}

OMNI = {
    "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    "token": "<|AUDIO|>",
    "named_tokens": {
        **QWEN_TOKENS,
        "image_token": "<|IMAGE|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
    },
    "config_tokens": {
        "image_token_id": "<|IMAGE|>",
        "video_token_id": "<|VIDEO|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
        "vision_start_token_id": "<|vision_bos|>",
        "vision_end_token_id": "<|vision_eos|>",
    },
    "feature_extractor": WHISPER | {"chunk_length": 20, "n_samples": 320000, "nb_max_frames": 2000},
}

FAMILIES: dict[str, AudioFamily] = {
    "gemma4": AudioFamily(
        audio="<|audio|>",
        token="<|audio|>",
        processor_class="Gemma4Processor",
        named_tokens=GEMMA4.named_tokens,
        tokens=GEMMA4.tokens,
        feature_extractor={
            "feature_extractor_type": "Gemma4AudioFeatureExtractor",
            "feature_size": 128,
            "sampling_rate": 16000,
        },
        tower={
            "model_type": "gemma4_audio",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "subsampling_conv_channels": [128, 4],
            "output_proj_dims": 32,
        },
        text=GEMMA4.text,
        vision=GEMMA4.vision,
        image_processor=GEMMA4.image_processor,
        processor=GEMMA4.processor,
        config_tokens={"image_token_id": "<|image|>", "video_token_id": "<|video|>"},
    ),
    "qwen2_5_omni_thinker": AudioFamily(
        **OMNI,
        processor_class="Qwen2_5OmniProcessor",
        tower={"output_dim": 32},
        text={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            }
        },
    ),
    "qwen3_omni_moe_thinker": AudioFamily(
        **OMNI,
        processor_class="Qwen3OmniMoeProcessor",
        max_clips=1,  # beside a longer clip, the last frames of a shorter one are others
        tower={"output_dim": 32, "downsample_hidden_size": 16},
    ),
    "qwen2_audio": AudioFamily(
        audio="<|audio_bos|><|AUDIO|><|audio_eos|>",
        token="<|AUDIO|>",
        processor_class="Qwen2AudioProcessor",
        named_tokens=QWEN_TOKENS,
        feature_extractor=WHISPER,
        tower={"max_source_positions": 100},
    ),
    "audioflamingo3": AudioFamily(
        audio="<sound>",
        token="<sound>",
        processor_class="AudioFlamingo3Processor",
        feature_extractor=WHISPER,
        tower={"max_source_positions": 100},
        processor={"audio_token": "<sound>", "max_audio_len": 12},
        max_clips=1,
    ),
    "musicflamingo": AudioFamily(
        audio="<|sound_bos|><sound><|sound_eos|>",
        token="<sound>",
        processor_class="MusicFlamingoProcessor",
        named_tokens={
            "audio_token": "<sound>",
            "audio_bos_token": "<|sound_bos|>",
            "audio_eos_token": "<|sound_eos|>",
        },
        feature_extractor=WHISPER,
        tower={"max_source_positions": 100},
        processor={"audio_token": "<sound>", "max_audio_len": 12},
        max_clips=1,
    ),
    "glmasr": AudioFamily(
        audio="<|begin_of_audio|><|pad|><|end_of_audio|>",
        token="<|pad|>",
        processor_class="GlmAsrProcessor",
        tokens=("<|begin_of_audio|>", "<|end_of_audio|>"),
        feature_extractor=WHISPER,
        tower={"intermediate_size": 128, "max_position_embeddings": 100},
        processor={"audio_token": "<|pad|>", "max_audio_len": 12},
        max_clips=1,
    ),
    "qwen3_asr": AudioFamily(
        audio="<|audio_start|><|audio_pad|><|audio_end|>",
        token="<|audio_pad|>",
        processor_class="Qwen3ASRProcessor",
        named_tokens={
            "audio_token": "<|audio_pad|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
        feature_extractor={
            "feature_extractor_type": "Qwen3ASRFeatureExtractor",
            "feature_size": 128,
            "sampling_rate": 16000,
            "hop_length": 160,
            "n_fft": 400,
            "n_window": 50,
        },
        tower={"output_dim": 32, "downsample_hidden_size": 16},
        max_clips=1,
    ),
    "voxtral": AudioFamily(
        audio="[BEGIN_AUDIO][AUDIO]",
        token="[AUDIO]",
        processor_class="VoxtralProcessor",
        tokens=("[BEGIN_AUDIO]",),
        feature_extractor=WHISPER,
        tower={"max_source_positions": 100, "intermediate_size": 128},
        max_clips=0,
    ),
}
