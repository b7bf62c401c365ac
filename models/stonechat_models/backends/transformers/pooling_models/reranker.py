"""Loads a classifier with one label, and scores batches of padded pairs of texts with it."""

import inspect
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

from stonechat_models.backends.base import Text
from stonechat_models.backends.transformers.loading.load import new_info
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.loading.quantize import weight_bytes
from stonechat_models.backends.transformers.pooling_models.embedder import (
    CANNOT_PAD,
    TransformersEmbedder,
    check_padding,
    max_length,
    refuse_settings,
)
from stonechat_models.backends.transformers.pooling_models.pooling import activation_named
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.checkpoint.support import refuse_encoder_decoder
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.device import choose_dtype
from stonechat_models.model_info import ModelInfo, RankingInfo
from stonechat_models.text.tokenizer import Tokenizer

NUM_PROBES = 8
"""Random texts whose scores tell how far apart scores are."""
TYPES = "token_type_ids"


class TransformersReranker(TransformersEmbedder):
    """A loaded classifier with one label. The vector of a pair has two numbers: its score, and the
    logit that the score is made of."""

    def __init__(
        self,
        module: nn.Module,
        activation: nn.Module,
        info: ModelInfo,
        device: torch.device,
        *,
        takes_types: bool,
    ) -> None:
        """`takes_types`: the model is told which tokens belong to the second text."""
        super().__init__(module, activation, info, device)
        self._pad_token_id: int | None = module.config.pad_token_id  # type: ignore[union-attr, assignment]
        self._takes_types = takes_types

    def padding_error(self) -> float:
        long, *others = self._random_texts(NUM_PROBES)
        short = Text(long.token_ids[: max(1, len(long.token_ids) // 2)])
        alone = self._embed([short])[0]
        if self._pad_token_id is None:  # transformers finds the last token by it
            return CANNOT_PAD
        padded = self._embed([short, long])[0]
        logits = torch.cat([self._embed([text])[:, 1] for text in (short, long, *others)])
        return float((alone - padded).abs().max() / logits.std().clamp(min=1e-6))

    def _vectors(self, ids: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        types = {TYPES: counts.long()} if self._takes_types else {}
        logits = self._module(input_ids=ids, attention_mask=mask, **types).logits.float()
        return torch.cat([self._head(logits), logits], dim=1)


def load_reranker(
    files: ModelFiles,
    config: EngineConfig,
    device: torch.device,
    tokenizer: Tokenizer,
    progress: Progress,
) -> TransformersReranker:
    """Load the model of a reranker's folder.

    Raises `ModelLoadError`, or `UnsupportedModelError` for settings that it cannot have.
    """
    assert files.reranker is not None, "the model has one label"
    refuse_settings(files, config, "a reranker")
    refuse_encoder_decoder(files.config)
    if files.config.model_type not in CLASSIFIERS:
        raise UnsupportedModelError(
            f"the installed transformers has no classifier of type {files.config.model_type}"
        )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    reranker, frame = files.reranker, tokenizer.pair_frame
    activation = activation_named(reranker.activation)
    dtype = choose_dtype(config.dtype, files.config.dtype, device)
    module = load_module(
        files,
        config,
        device,
        dtype,
        attn_implementation=None,
        model_class=transformers.AutoModelForSequenceClassification,
        progress=progress,
    )
    info = replace(
        new_info(files, config, device, module, dtype),
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        weight_bytes=weight_bytes(module),
        max_model_len=max_length(module, reranker.max_length, config.max_model_len),
        generates=False,
        ranking=RankingInfo(
            activation=type(activation).__name__,
            prompt=reranker.prompt,
            lower_case=reranker.lower_case,
        ),
    )
    if info.max_model_len <= frame.num_tokens:
        raise UnsupportedModelError(f"a pair of {info.max_model_len} tokens has no room for texts")
    takes_types = frame.has_types and _takes_types(module, files)
    model = TransformersReranker(module, activation, info, device, takes_types=takes_types)
    check_padding(model, dtype, progress)
    return model


def _takes_types(module: nn.Module, files: ModelFiles) -> bool:
    """Whether transformers hands the token types of a pair to the model.

    The model must have an argument and embeddings for them, and its tokenizer must make them.
    """
    config: Any = module.config
    has_argument = TYPES in inspect.signature(module.forward).parameters
    if not has_argument or getattr(config, "type_vocab_size", 0) < 2:
        return False
    tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    return TYPES in tokenizer.model_input_names
