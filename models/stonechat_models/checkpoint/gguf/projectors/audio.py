"""The audio parts that llama.cpp keeps in files of their own (`mmproj`), by the projector's type.

Entries are like those of vision parts (`projectors`).
"""

import numpy as np

from stonechat_models.checkpoint.gguf.metadata import Config, integer
from stonechat_models.checkpoint.gguf.projectors import names
from stonechat_models.checkpoint.gguf.projectors.configs import width_of
from stonechat_models.checkpoint.gguf.projectors.projector import Projector, Whole, within
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.hf_config import MAX_LAYERS

SECTION = "audio_config"
RATE, HOP, FFT = 16000, 160, 400
"""Samples a second, samples between two frames, and samples of a frame, as Whisper has them."""
QWEN3_WINDOW = 50
"""Half of the frames that go through the convolutions at a time."""
QWEN3_ASR_TEMPLATE = """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\n<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>
{%- else %}{{ part.text }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
"""The converter writes a template that takes texts alone."""


def _sizes(mmproj: GgufFile, width: str, inner: str, layers: str, heads: str) -> Config:
    """Return the sizes of a tower, by the names that its type has for them."""
    return {
        width: integer(mmproj, "audio.embedding_length"),
        inner: integer(mmproj, "audio.feed_forward_length"),
        layers: integer(mmproj, "audio.block_count", limit=MAX_LAYERS),
        heads: integer(mmproj, "audio.attention.head_count"),
        "num_mel_bins": integer(mmproj, "audio.num_mel_bins"),
    }


def _whisper(mmproj: GgufFile, model_type: str, *keys: str) -> Config:
    """Return `audio_config` of an encoder like Whisper's."""
    positions = width_of(mmproj, "a.position_embd.weight", 0)
    sizes = _sizes(mmproj, *keys)
    return {"model_type": model_type, **sizes, "max_source_positions": positions}


def _whisper_clips(mmproj: GgufFile) -> Config:
    """Return the settings of its feature extractor. Two frames make a position."""
    seconds = 2 * width_of(mmproj, "a.position_embd.weight", 0) * HOP // RATE
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": integer(mmproj, "audio.num_mel_bins"),
        "sampling_rate": RATE,
        "hop_length": HOP,
        "n_fft": FFT,
        "chunk_length": seconds,
        "return_attention_mask": True,
    }


def _column(mmproj: GgufFile, bias: np.ndarray) -> np.ndarray:
    """Return the bias of a convolution, which is stored with the dimensions of its output."""
    return bias.reshape(-1)


ENCODER = ("d_model", "encoder_ffn_dim", "encoder_layers", "encoder_attention_heads")
HIDDEN = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_CONV1D = {f"a.conv1d.{i}.bias": _column for i in (1, 2)}

AUDIO_PROJECTORS: dict[str, Projector] = {
    "qwen2a": Projector(
        models={"qwen2": Whole("qwen2_audio", "Qwen2AudioForConditionalGeneration")},
        section=SECTION,
        tower=lambda m: _whisper(m, "qwen2_audio_encoder", *ENCODER),
        tokens={"audio_token_index": "<|AUDIO|>"},
        named_tokens={
            "audio_token": "<|AUDIO|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
        },
        processor_class="Qwen2AudioProcessor",
        prepare=_whisper_clips,
        names={
            **within("model.audio_tower.", names.WHISPER),
            "mm.a.fc": "model.multi_modal_projector.linear",
        },
        layouts=_CONV1D,
        output=("mm.a.fc.weight", 0),
    ),
    "voxtral": Projector(
        models={"llama": Whole("voxtral", "VoxtralForConditionalGeneration")},
        section=SECTION,
        tower=lambda m: _whisper(m, "voxtral_encoder", *HIDDEN),
        whole=lambda m: {"projector_hidden_act": "gelu"},
        tokens={"audio_token_id": "[AUDIO]"},
        processor_class="VoxtralProcessor",
        prepare=_whisper_clips,
        names={
            **within("model.audio_tower.", names.WHISPER),
            "mm.a.mlp.1": "model.multi_modal_projector.linear_1",
            "mm.a.mlp.2": "model.multi_modal_projector.linear_2",
        },
        layouts=_CONV1D,
        chat_template="",
        output=("mm.a.mlp.2.weight", 0),
    ),
    "qwen3a": Projector(
        models={"qwen3vl": Whole("qwen3_asr", "Qwen3ASRForConditionalGeneration")},
        section=SECTION,
        tower=lambda m: {
            "model_type": "qwen3_asr_encoder",
            **_sizes(m, *ENCODER),
            "n_window": QWEN3_WINDOW,
            "downsample_hidden_size": width_of(m, "a.conv2d.1.weight", 0),
            "output_dim": width_of(m, "mm.a.mlp.2.weight", 0),
        },
        tokens={"audio_token_id": "<|audio_pad|>"},
        named_tokens={
            "audio_token": "<|audio_pad|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
        processor_class="Qwen3ASRProcessor",
        prepare=lambda m: {
            "feature_extractor_type": "Qwen3ASRFeatureExtractor",
            "feature_size": integer(m, "audio.num_mel_bins"),
            "sampling_rate": RATE,
            "hop_length": HOP,
            "n_fft": FFT,
            "n_window": QWEN3_WINDOW,
        },
        names={
            **within("model.audio_tower.", names.QWEN3_AUDIO),
            "mm.a.mlp.1": "model.multi_modal_projector.linear_1",
            "mm.a.mlp.2": "model.multi_modal_projector.linear_2",
        },
        layouts={f"a.conv2d.{i}.bias": _column for i in (1, 2, 3)},
        chat_template=QWEN3_ASR_TEMPLATE,
        unused=frozenset({"a.position_embd.weight"}),
        output=("mm.a.mlp.2.weight", 0),
    ),
    "gemma4a": Projector(
        models={"gemma4": Whole("gemma4", "Gemma4ForConditionalGeneration")},
        section=SECTION,
        tower=lambda m: {
            "model_type": "gemma4_audio",
            "hidden_size": integer(m, "audio.embedding_length"),
            "num_hidden_layers": integer(m, "audio.block_count", limit=MAX_LAYERS),
            "num_attention_heads": integer(m, "audio.attention.head_count"),
            "subsampling_conv_channels": [width_of(m, f"a.conv1d.{i}.weight", 0) for i in (0, 1)],
            "conv_kernel_size": width_of(m, "a.blk.0.conv_dw.weight", 1),
            "output_proj_dims": width_of(m, "a.pre_encode.out.weight", 0),
            "use_clipped_linears": "a.blk.0.attn_q.input_min" in m.tensors,
        },
        tokens={
            "audio_token_id": "<|audio|>",
            "boa_token_id": "<|audio>",
            "eoa_token_index": "<audio|>",
        },
        processor_class="Gemma4Processor",
        prepare=lambda m: {
            "feature_extractor_type": "Gemma4AudioFeatureExtractor",
            "feature_size": integer(m, "audio.num_mel_bins"),
            "sampling_rate": RATE,
        },
        names={
            **within("model.audio_tower.", names.GEMMA4_AUDIO),
            "mm.a.input_projection": "model.embed_audio.embedding_projection",
        },
        layouts={
            "a.blk.*.per_dim_scale.weight": lambda m, values: _inverse_softplus(values),
            "a.blk.*.conv_dw.weight": lambda m, values: values[:, None],
            **{
                f"{own}.{bound}": lambda m, values: values.reshape(())
                for own in names.GEMMA4_AUDIO_LINEARS
                for bound in names.BOUNDS
            },
        },
        output=("mm.a.input_projection.weight", 0),
    ),
}
"""The entries by `clip.audio.projector_type`, or `clip.projector_type` of a file without vision."""


def _inverse_softplus(values: np.ndarray) -> np.ndarray:
    """Return x of values log(1 + exp(x))."""
    with np.errstate(divide="ignore"):  # shapes are found with zeros
        return np.asarray(values + np.log(-np.expm1(-values)), np.float32)
