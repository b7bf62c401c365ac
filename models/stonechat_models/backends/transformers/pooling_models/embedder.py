"""Loads a text encoder and its embedding head, and runs both on batches of padded texts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForTextEncoding

from stonechat_models.backends.base import Text
from stonechat_models.backends.quantization.device_support import precision_of
from stonechat_models.backends.transformers.kinds import is_encoder
from stonechat_models.backends.transformers.loading.load import new_info
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.loading.quantize import weight_bytes
from stonechat_models.backends.transformers.pooling_models.pooling import EmbeddingHead
from stonechat_models.backends.transformers.verify import logits_tolerance
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.checkpoint.sentence_transformers import EmbedderFiles
from stonechat_models.checkpoint.support import refuse_other_heads
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.hardware.device import choose_dtype
from stonechat_models.model_info import EmbeddingInfo, ModelInfo

TEXT_ENCODERS = frozenset({"t5", "mt5", "umt5"})
"""Types with an encoder and a decoder, of which the encoder alone makes embeddings."""
PADDING_LENGTH = 24
"""Tokens of the text that another is padded to for the check of padding."""
CANNOT_PAD = 1e9
DEFAULT_LENGTH = 512
"""The longest input in tokens, if neither the files nor the model's positions say."""
NO_CONFIGURATION = (
    "the model has no sentence-transformers configuration: an embedding is the mean of the last "
    "hidden states, not normalised"
)


class TransformersEmbedder:
    """A loaded encoder with its head; an `EmbeddingModel`."""

    def __init__(
        self, module: nn.Module, head: nn.Module, info: ModelInfo, device: torch.device
    ) -> None:
        self.info = info
        self._module = module
        self._head = head.to(device)
        self._device = device
        self._pad_id: int = getattr(module.config, "pad_token_id", None) or 0
        self.pads = True
        """Whether texts of different length are computed together, the shorter ones padded."""

    @torch.inference_mode()
    def embed(self, texts: Sequence[Text]) -> torch.Tensor:
        if not self.pads:
            return torch.cat([self._embed([text]) for text in texts])
        return self._embed(texts)

    @torch.inference_mode()
    def padding_error(self) -> float:
        """Return the largest difference that padding makes to a number of a random text's vector,
        in standard deviations; `CANNOT_PAD` if the model takes no padded texts.

        Raises what the model raises if it does not run.
        """
        long, *_ = self._random_texts(1)
        short = Text(long.token_ids[: max(1, len(long.token_ids) // 2)])
        alone, padded = self._embed([short])[0], self._embed([short, long])[0]
        return float((alone - padded).abs().max() / alone.std().clamp(min=1e-6))

    def _random_texts(self, num_texts: int) -> list[Text]:
        """Return texts of random tokens, the same ones in each call."""
        length = min(PADDING_LENGTH, self.info.max_model_len)
        draws = torch.rand(num_texts, length, generator=torch.Generator().manual_seed(0))
        return [Text(ids) for ids in (draws * self.info.vocab_size).long().tolist()]

    def _embed(self, texts: Sequence[Text]) -> torch.Tensor:
        longest = max(len(text.token_ids) for text in texts)
        ids = torch.full((len(texts), longest), self._pad_id)
        mask = torch.zeros_like(ids)
        counts = torch.zeros_like(ids, dtype=torch.bool)
        for row, text in enumerate(texts):
            length = len(text.token_ids)
            ids[row, :length] = torch.tensor(text.token_ids)
            mask[row, :length] = 1
            counts[row, min(text.num_unpooled, length - 1) : length] = True
        ids, mask, counts = (tensor.to(self._device) for tensor in (ids, mask, counts))
        return self._vectors(ids, mask, counts).cpu()

    def _vectors(self, ids: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the vectors of padded texts: ids and mask int64[N, T], and bool[N, T], false for
        the first tokens that do not count."""
        num_tokens = ids.shape[1]
        hidden = self._module(input_ids=ids, attention_mask=mask).last_hidden_state
        if hidden.shape[1] < num_tokens:
            raise UnsupportedModelError("it gives fewer hidden states than a text has tokens")
        embeddings: torch.Tensor = self._head(hidden[:, :num_tokens], counts)
        return embeddings


def load_embedder(
    files: ModelFiles, config: EngineConfig, device: torch.device, progress: Progress
) -> TransformersEmbedder:
    """Load the model of an embedder's folder.

    Raises `ModelLoadError`, or `UnsupportedModelError` for settings that it cannot have.
    """
    refuse_settings(files, config, "an embedding model")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    embedder = files.embedder or EmbedderFiles()
    dtype = choose_dtype(config.dtype, files.config.dtype, device)
    is_text_encoder = files.config.model_type in TEXT_ENCODERS
    module = load_module(
        files,
        config,
        device,
        dtype,
        attn_implementation=None,
        model_class=AutoModelForTextEncoding if is_text_encoder else AutoModel,
        unused=("pooler.", "lm_head."),
        progress=progress,
    )
    _set_language(module.config)
    hidden_size = int(module.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]
    head = EmbeddingHead(embedder, hidden_size, allow_pickle=config.allow_pickle)
    info = replace(
        new_info(files, config, device, module, dtype),
        num_parameters=sum(p.numel() for part in (module, head) for p in part.parameters()),
        weight_bytes=weight_bytes(module) + weight_bytes(head),
        max_model_len=max_length(module, embedder.max_length, config.max_model_len),
        generates=False,
        embedding=EmbeddingInfo(
            size=head.size,
            pooling="+".join(head.pooling),
            is_normalized=head.is_normalized,
            prompts=embedder.prompts,
            default_prompt=embedder.default_prompt,
            skips_prompt=embedder.skips_prompt,
            lower_case=embedder.lower_case,
        ),
        notes=(NO_CONFIGURATION,) if files.embedder is None else (),
    )
    model = TransformersEmbedder(module, head, info, device)
    check_padding(model, dtype, progress)
    return model


def check_padding(model: TransformersEmbedder, dtype: torch.dtype, progress: Progress) -> None:
    """Compute one text at a time if padding would change the vectors.

    Raises `UnsupportedModelError` for a model that does not run.
    """
    try:
        error = model.padding_error()
    except UnsupportedModelError:
        raise
    except Exception as problem:
        raise UnsupportedModelError(f"it does not run on a text: {problem}") from problem
    if not math.isfinite(error):
        raise UnsupportedModelError(f"it computes numbers that are not finite in {dtype}")
    model.pads = error <= logits_tolerance(dtype)
    if not model.pads:
        progress(f"running {model.info.name} one text at a time: padding changes its vectors")


def _set_language(config: Any) -> None:
    """Choose the only language of a model with layers per language, if it names none.

    Raises `UnsupportedModelError` if there are several.
    """
    languages = getattr(config, "languages", None)
    if not languages or getattr(config, "default_language", None) is not None:
        return
    if len(languages) > 1:
        raise UnsupportedModelError(
            "it has layers for each language: name one of them as default_language in config.json"
        )
    config.default_language = languages[0]


def is_bare_encoder(config: HFConfig) -> bool:
    """Whether a model without sentence-transformers files is an encoder that makes embeddings.

    Raises `UnsupportedModelError` for an encoder with the head of another task.
    """
    if not is_encoder(config) or config.keys.read("is_encoder_decoder", bool, False):
        return False
    refuse_other_heads(config)
    return True


def refuse_settings(files: ModelFiles, config: EngineConfig, kind: str) -> None:
    """Raise `ModelLoadError` for a setting that models do not have whose texts are padded."""
    if config.backend == "native":
        raise ModelLoadError(f"the native backend cannot run {files.name}: it is {kind}")
    refused = {
        "--quantize": precision_of(config) is not None,
        "--adapter": config.adapter is not None,
        "--lora": bool(config.lora),
        "--device-map": config.device_map is not None,
        "--deterministic": config.deterministic,
    }
    for flag, is_set in refused.items():
        if is_set:
            raise UnsupportedModelError(f"{files.name} is {kind}: leave out {flag}")


def max_length(module: nn.Module, stated: int, requested: int | None) -> int:
    """Return the longest input in tokens. `stated`: what the files say, or 0.

    Raises `UnsupportedModelError` if `requested` is more than the model has positions.
    """
    limit = _num_positions(module)
    if requested is not None:
        if limit and requested > limit:
            raise UnsupportedModelError(
                f"a context length of {requested} tokens exceeds this model's limit of {limit}"
            )
        return requested
    length = stated or limit or DEFAULT_LENGTH
    return min(length, limit) if limit else length


def _num_positions(module: nn.Module) -> int:
    """Return how many positions a model has; 0 if it sets no limit.

    In models like RoBERTa, positions begin behind the id of the padding token.
    """
    config: Any = module.config.get_text_config()  # type: ignore[operator, union-attr]
    num_positions = max(0, int(getattr(config, "max_position_embeddings", 0) or 0))
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            first = 0 if part.padding_idx is None else part.padding_idx + 1
            num_rows = int(part.num_embeddings) - first
            return min(num_rows, num_positions) if num_positions else num_rows
    return num_positions
