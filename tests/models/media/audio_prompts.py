"""Prompts with audio as the engine takes them, and plain transformers' answers to them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from stonechat_models.backends.transformers.kinds import auto_class
from stonechat_models.checkpoint.hf_config import read_config
from stonechat_models.media.hf_processor import HFProcessor, as_tensors
from stonechat_models.types import MediaInput
from tests.models.audio_families import FAMILIES
from tests.models.audio_models import audio_tokenizer, save_audio_model
from tests.models.media.prompts import Prompt, greedy_reference

RATE = 16000


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Return noise over a tone, float32."""
    generator = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE)) / RATE
    tone = 0.3 * np.sin(2 * np.pi * (200 + 90 * seed) * times * (1 + times))
    return (tone + 0.05 * generator.standard_normal(len(times))).astype(np.float32)


class AudioModel:
    """A family's tiny model in float32, with its processor."""

    def __init__(self, folder: Path, name: str) -> None:
        self.family = FAMILIES[name]
        self.folder = save_audio_model(folder, name)
        self.tokenizer = audio_tokenizer(self.family)
        self.token_id: int = self.tokenizer.convert_tokens_to_ids(self.family.token)
        self.processor = HFProcessor(folder, "audio", self.token_id)
        self.module: Any = (
            auto_class(read_config(folder / "config.json"))
            .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
            .eval()
        )
        self.module.requires_grad_(False)

    def prompt(self, text: str, *clips: np.ndarray) -> Prompt:
        """Return a prompt: `text`, where what the template writes for a clip is each `#`."""
        prepared = [self.processor.prepare(clip) for clip in clips]
        whole = self._inputs(text.replace("#", self.family.audio), clips, prepared)
        token_ids = whole.pop("input_ids")[0].tolist()
        places = iter([i for i, token_id in enumerate(token_ids) if token_id == self.token_id])
        media = []
        for clip, (_, num_tokens, arrays) in zip(clips, prepared, strict=True):
            for number, (length, piece) in enumerate(self.processor.cut(num_tokens, arrays)):
                run = [next(places) for _ in range(length)]
                assert run == list(range(run[0], run[0] + length))
                content = hashlib.blake2b(clip.tobytes() + bytes([number]), digest_size=16)
                place = (run[0], length)
                media.append(MediaInput(content.digest(), (place,), as_tensors(piece), "audio"))
        assert next(places, None) is None
        return Prompt(token_ids, tuple(media), whole)

    def prompt_with_image(
        self, text: str, eyes: HFProcessor, picture: Image.Image, clip: np.ndarray
    ) -> Prompt:
        """Return a prompt with one image for `@` and one clip for `#`, in any order."""
        prepared = {"@": eyes.prepare(picture), "#": self.processor.prepare(clip)}
        ids = {"@": self.module.config.image_token_id, "#": self.token_id}
        for mark, (replacement, _, _) in prepared.items():
            text = text.replace(mark, replacement)
        token_ids = self.tokenizer(text)["input_ids"]
        media, inputs = [], {}
        types = torch.zeros(1, len(token_ids), dtype=torch.long)
        for mark, modality, type_id in (("@", "image", 1), ("#", "audio", 3)):
            _, num_tokens, arrays = prepared[mark]
            start = token_ids.index(ids[mark])
            types[0, start : start + num_tokens] = type_id
            place = (start, num_tokens)
            media.append(MediaInput(mark.encode(), (place,), as_tensors(arrays), modality))
            inputs |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        inputs["mm_token_type_ids"] = types
        return Prompt(token_ids, tuple(media), inputs)

    def _inputs(self, text: str, clips: Any, prepared: Any) -> dict[str, torch.Tensor]:
        """Return the processor's inputs of a whole prompt, or those of its clips one by one."""
        if 0 < len(clips) <= self.family.max_clips:
            whole = self.processor._processor(
                text=[text],
                audio=list(clips),
                return_tensors="pt",
                audio_kwargs={"sampling_rate": RATE},
            )
            return {k: v for k, v in whole.items() if k != "attention_mask"}
        first, *pieces = text.split(self.processor.placeholder)
        for piece, (replacement, _, _) in zip(pieces, prepared, strict=True):
            first += replacement + piece
        names = prepared[0][2] if prepared else ()
        return {
            "input_ids": self.tokenizer(first, return_tensors="pt")["input_ids"],
            **{name: _stacked([arrays[name] for _, _, arrays in prepared]) for name in names},
        }

    def reference(self, prompt: Prompt, num_tokens: int) -> tuple[list[int], list[float]]:
        is_old = Version(transformers.__version__) < Version("5.20")
        if is_old and self.module.config.model_type == "gemma4" and prompt.media:
            pytest.skip("before transformers 5.20, its generate answers otherwise than later")
        return greedy_reference(self.module, prompt, num_tokens)


def _stacked(arrays: list[np.ndarray]) -> torch.Tensor:
    """Return the arrays of several clips as one, with zeros behind the shorter ones."""
    length = max(array.shape[-1] for array in arrays)
    padded = [
        np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])])
        for array in arrays
    ]
    return torch.from_numpy(np.concatenate(padded))
