"""Tiny random Whisper models, whose windows are two seconds long."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tests.models.tiny_tokenizers import byte_level_backend

RATE = 16_000
WINDOW_SECONDS = 2
POSITIONS = 50 * WINDOW_SECONDS
LANGUAGES = ("en", "de", "zh")
SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)),
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"),
    "<|notimestamps|>",
)
TIMES = tuple(f"<|{step * 0.02:.2f}|>" for step in range(POSITIONS + 1))
ALIGNMENT_HEADS = [[0, 1], [1, 0], [1, 3]]


def whisper_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Whisper's special tokens behind the text, then the times."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_backend(), eos_token=SPECIAL[0], pad_token=SPECIAL[0]
    )
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    tokenizer.add_tokens(list(TIMES))
    return tokenizer


def save_whisper(folder: Path, *, multilingual: bool = True, **generation: Any) -> Path:
    """Save a tiny model. `generation` changes its generation config; None removes a key."""
    folder.mkdir(parents=True)
    tokenizer = whisper_tokenizer()
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=POSITIONS,
        max_target_positions=40,
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(3)
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.4)
    settings: dict[str, Any] = {
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "max_initial_timestamp_index": 20,
        "is_multilingual": multilingual,
        "alignment_heads": ALIGNMENT_HEADS,
        "suppress_tokens": [*range(10), *(ids[text] for text in SPECIAL[1:-1])],
        "begin_suppress_tokens": [ids["<|endoftext|>"]],
    }
    if multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    settings |= generation
    model.generation_config = GenerationConfig(
        **{name: value for name, value in settings.items() if value is not None}
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS)
    extractor.save_pretrained(folder)
    return folder


def features_of(folder: Path, samples: np.ndarray) -> np.ndarray:
    """What the feature extractor of transformers makes of a clip: float32[1, bands, frames]."""
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    return extractor(
        samples, sampling_rate=RATE, padding="longest", truncation=False, return_tensors="pt"
    )["input_features"]


def plain_segments(model: Any, folder: Path, samples: np.ndarray, **options: Any) -> list[Any]:
    """The segments with text of transformers' own `generate`: their times, their tokens and more.

    `model` is that of the folder.
    """
    features = features_of(folder, samples)
    outputs = model.generate(features, return_timestamps=True, return_segments=True, **options)
    return [segment for segment in outputs["segments"][0] if text_of(segment)]


def text_of(segment: Any) -> str:
    """The text of a segment, without its times."""
    tokenizer = whisper_tokenizer()
    first_special = tokenizer.convert_tokens_to_ids(SPECIAL[0])
    return tokenizer.decode([t for t in segment["tokens"].tolist() if t < first_special]).strip()
