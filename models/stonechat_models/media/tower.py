"""Loads the towers of a model without its language model, and runs them on a CPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)
from transformers.utils import logging as transformers_logging

from stonechat_models.checkpoint.gguf.mmproj import read_mmproj, tower_dtype
from stonechat_models.checkpoint.resolve import ModelFiles, tower_parameters
from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware.device import choose_dtype
from stonechat_models.media.encode import encode_media
from stonechat_models.media.features import MediaFeatures
from stonechat_models.media.positions import grid_positions
from stonechat_models.model_file import reading
from stonechat_models.types import MediaInput

CPU = torch.device("cpu")
LANGUAGE_MODEL = ("model.language_model.", "model.text_model.", "lm_head.")
"""How transformers' names of the language model's weights begin."""


class Tower:
    """A model's own code with the weights of its towers alone. Its results are numpy's."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype

    @torch.inference_mode()
    def encode(self, medium: MediaInput) -> MediaFeatures:
        """Return features of an image or a clip, float32. Raises what the model's code raises."""
        features = encode_media(self.module, medium, CPU, self.dtype)
        return MediaFeatures(
            features.embeddings.float().numpy(),
            tuple(layer.float().numpy() for layer in features.layer_embeddings),
        )

    def positions(
        self, token_ids: Sequence[int], media: Sequence[MediaInput]
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Return what `grid_positions` returns."""
        return grid_positions(self.module, token_ids, media)


def load_tower(files: ModelFiles, language_model: tuple[str, ...], threads: int) -> Tower:
    """Load the weights of a model whose names do not begin as in `language_model`.

    `language_model` are names in safetensors files. Of a GGUF model, the file of its vision part is
    read. The tower runs in bfloat16 if it is stored so and the processor multiplies bfloat16, else
    in float32. Raises `ModelLoadError` if a weight is missing or has another shape.
    """
    torch.set_num_threads(threads)
    with reading(files.name), torch.inference_mode(False):
        if files.mmproj is not None:
            types = (t.type_name for t in read_mmproj(files.mmproj).tensors.values())
            dtype = choose_dtype("auto", tower_dtype(types), CPU)
            weights = {n: torch.from_numpy(v()).to(dtype) for n, v in tower_parameters(files)}
        else:
            dtype = choose_dtype("auto", files.config.dtype, CPU)
            weights = _folder_weights(files, language_model)
        config = _without_language_model(AutoConfig.from_pretrained(files.folder, dtype=dtype))
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it warns of the weights that are left out
        transformers_logging.disable_progress_bar()
        try:
            model_class = _class_of(config)
            module, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=dtype,
                ignore_mismatched_sizes=True,  # the report has them
                output_loading_info=True,
            )
        finally:
            transformers_logging.set_verbosity(verbosity)
    _check(files.name, report)
    if not hasattr(config, "vision_config"):
        module.set_input_embeddings(_NoEmbeddings(config.get_text_config().hidden_size))
    return Tower(module.eval().requires_grad_(False), dtype)


class _NoEmbeddings(torch.nn.Module):
    """Stands for the embeddings of tokens, which the placeholders of a clip do not need."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, size), requires_grad=False)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*token_ids.shape, self.weight.shape[-1])


def _class_of(config: Any) -> Any:
    for mapping in (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    ):
        if type(config) in mapping:
            return mapping[type(config)]
    raise ModelLoadError(f"transformers has no class for {type(config).__name__}")


def _folder_weights(files: ModelFiles, language_model: tuple[str, ...]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for path in files.weights:
        with safe_open(path, framework="pt") as file:
            weights |= {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if not name.startswith(language_model)
            }
    return weights


def _without_language_model(config: Any) -> Any:
    """Return the config of the model with a language model that has no layers and no tokens."""
    text = config.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    text.vocab_size, text.pad_token_id = 1, None
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # what is left is not quantised
    return config


def _check(name: str, report: dict[str, Any]) -> None:
    missing = [str(key) for key in report["missing_keys"]]
    mismatched = [str(key[0]) for key in report["mismatched_keys"]]
    wrong = sorted(k for k in (*missing, *mismatched) if not k.startswith(LANGUAGE_MODEL))
    if wrong:
        raise ModelLoadError(
            f"{name}: weights of the tower are missing or have another shape: "
            f"{', '.join(wrong[:5])}"
        )
