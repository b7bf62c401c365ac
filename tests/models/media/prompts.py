"""Prompts with images as the engine takes them, and plain transformers' answers to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stonechat_models.backends.transformers.loading.pretrained import complete_outputs
from stonechat_models.media.hf_processor import HFProcessor
from stonechat_models.types import MediaInput, MediaTensor
from tests.models.vision_models import ALL_FAMILIES, save_vision_model, vision_tokenizer


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), np.uint8))


@dataclass
class Prompt:
    """A prompt's tokens with its images for the engine, and the processor's inputs of all of it."""

    token_ids: list[int]
    media: tuple[MediaInput, ...]
    inputs: dict[str, torch.Tensor]


class VisionModel:
    """A family's tiny model in float32, with its processor."""

    def __init__(self, folder: Path, name: str) -> None:
        from transformers import AutoModelForImageTextToText

        family = ALL_FAMILIES[name]
        self._image = family.image
        self.folder = folder
        self._counts_images = (family.model_type or name) == "llava_onevision"
        save_vision_model(folder, name)
        self.token_id: int = vision_tokenizer(family).convert_tokens_to_ids(family.token)
        self.processor = HFProcessor(folder, "image", self.token_id)
        self.module: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        complete_outputs(self.module)
        self.module.requires_grad_(False)

    def prompt(self, text: str, *images: Image.Image) -> Prompt:
        """Return a prompt: `text`, where what the template writes for an image is each `#`."""
        text = text.replace("#", self._image)
        pictures = [list(images)] if images else None
        whole = self.processor._processor(
            text=[text], images=pictures, return_tensors="np", add_special_tokens=False
        )
        token_ids = whole["input_ids"][0].tolist()
        inputs = {
            k: torch.from_numpy(v)
            for k, v in whole.items()
            if k not in ("attention_mask", "input_ids", "labels")
        }
        places = iter([i for i, token_id in enumerate(token_ids) if token_id == self.token_id])
        several = len(images) > 1 and self._counts_images
        prepared = [self._prepared(image, places, several) for image in images]
        assert next(places, None) is None
        return Prompt(token_ids, tuple(prepared), inputs)

    def _prepared(self, image: Image.Image, places: Any, among_others: bool) -> MediaInput:
        _, num_tokens, arrays = self.processor.prepare(image, among_others=among_others)
        runs: list[tuple[int, int]] = []
        for place in (next(places) for _ in range(num_tokens)):
            if runs and sum(runs[-1]) == place:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((place, 1))
        tensors = {k: MediaTensor(v.dtype.name, v.shape, v.tobytes()) for k, v in arrays.items()}
        return MediaInput(image.tobytes()[among_others:][:16], tuple(runs), tensors)

    def reference(self, prompt: Prompt, num_tokens: int) -> tuple[list[int], list[float]]:
        return greedy_reference(self.module, prompt, num_tokens)


@torch.inference_mode()
def greedy_reference(module: Any, prompt: Prompt, num_tokens: int) -> tuple[list[int], list[float]]:
    """Return the greedy tokens of the model's own `generate`, and their log-probabilities."""
    implementation = module.config._attn_implementation
    module.set_attn_implementation("eager")
    module.generation_config.eos_token_id = None
    ids = torch.tensor([prompt.token_ids])
    output = module.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **prompt.inputs,
    )
    module.set_attn_implementation(implementation)
    rows = torch.log_softmax(torch.cat(output.logits).double(), dim=-1)
    return output.sequences[0, ids.shape[1] :].tolist(), rows.max(dim=-1).values.tolist()
