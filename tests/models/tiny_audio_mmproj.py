"""Writes tiny models that hear as two GGUF files, as llama.cpp's converter does.

What is split, offset or renamed is taken from that converter (`conversion/`), and the names come
from the `gguf` package's own map. Nothing here is taken from the reader under test.
"""

from pathlib import Path
from typing import Any

import gguf
import torch

from tests.models.media.audio_prompts import AudioModel
from tests.models.tiny_mmproj import (
    TEXTS,
    tower_tensors,
    write_mmproj,
    write_tensors,
    write_text_of,
)

SUFFIXES = (".weight", ".bias", ".input_min", ".input_max", ".output_min", ".output_max")
AUDIO_TEXTS = {
    "qwen2_audio": ("qwen2", "Qwen2ForCausalLM", "Qwen2Config"),
    "voxtral": ("llama", "LlamaForCausalLM", "LlamaConfig"),
    "qwen3_asr": ("qwen3vl", "Qwen3ForCausalLM", "Qwen3Config"),
    "gemma4": TEXTS["gemma4"],
}
"""The architecture of the text's file, and the classes for the text alone."""


def write_audio_text(model: AudioModel, name: str, path: Path) -> Path:
    """Write the language model and the tokenizer."""
    return write_text_of(model, model.tokenizer, AUDIO_TEXTS[name], path)


def audio_tensors(model: AudioModel, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the audio part."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 128)
    tensors = {}
    for own, values in model.module.state_dict().items():
        if "audio" not in own and "multi_modal_projector" not in own:
            continue
        changed, values = gemma4(own, values) if name == "gemma4" else whisper(own, values)
        if name == "qwen3_asr":
            changed = changed.replace("audio.multi_modal_projector.linear_", "audio_tower.proj")
        target = names.get_name(changed, try_suffixes=SUFFIXES)
        assert target is not None, changed
        tensors[target] = values
    if name == "qwen3_asr":
        tensors["a.position_embd.weight"] = torch.randn(1500, 32)
    return tensors


def whisper(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    name = name.removeprefix("model.").replace("multi_modal_pro", "audio.multi_modal_pro")
    if name.endswith("bias") and ".conv" in name:
        tensor = tensor.unsqueeze(-1)
    return name, tensor.unsqueeze(-1) if "conv2d" in name and name.endswith("bias") else tensor


def gemma4(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    name = name.replace("model.audio_tower.", "conformer.").replace(".linear.", ".")
    if name.endswith("per_dim_scale"):
        return f"{name}.weight", torch.nn.functional.softplus(tensor)
    return name, tensor.squeeze(1) if "depthwise" in name else tensor.reshape(tensor.shape or (1,))


def add_audio(writer: gguf.GGUFWriter, name: str, model: AudioModel) -> None:
    """Write the metadata."""
    config: Any = model.module.config.audio_config
    writer.add_clip_has_audio_encoder(True)
    writer.add_audio_projection_dim(model.module.config.get_text_config().hidden_size)
    writer.add_audio_embedding_length(config.hidden_size)
    writer.add_audio_feed_forward_length(getattr(config, "intermediate_size", 4 * 32))
    writer.add_audio_block_count(config.num_hidden_layers)
    writer.add_audio_head_count(config.num_attention_heads)
    writer.add_audio_num_mel_bins(128)
    writer.add_audio_attention_layernorm_eps(1e-5)
    if name == "gemma4":
        writer.add_clip_audio_projector_type("gemma4a")
    elif name == "qwen3_asr":
        writer.add_clip_audio_projector_type("qwen3a")
    else:
        writer.add_clip_projector_type({"qwen2_audio": "qwen2a"}.get(name, name))
    if name == "voxtral":
        writer.add_audio_stack_factor(4)


def write_audio_mmproj(model: AudioModel, name: str, path: Path, skip: str = "") -> Path:
    """Write the audio part, that of Gemma 4 with its vision part. `skip`: a metadata key."""
    tensors = audio_tensors(model, name)
    if name == "gemma4":
        tensors |= tower_tensors(model, name)
        return write_mmproj(
            model, name, path, tensors=tensors, add_audio=lambda w: add_audio(w, name, model)
        )
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    add_audio(writer, name, model)
    if skip:
        del writer.kv_data[0][skip]
    return write_tensors(writer, tensors, gguf.GGMLQuantizationType.F32, path)
