"""Any Hugging Face causal model, unmodified, over the paged KV cache."""

import inspect
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from stonechat_models.attention.backend import AttentionBackend
from stonechat_models.attention.interface import (
    ATTENTION_NAME,
    PagedContext,
    ProbeContext,
    register_attention,
)
from stonechat_models.errors import EngineError, UnsupportedModelError
from stonechat_models.forward_batch import ForwardBatch
from stonechat_models.kv_cache import KVCache
from stonechat_models.types import ModelInfo

SELF_CHECK_LENGTHS = (7, 4)
SELF_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25}
"""Largest difference of logits allowed, relative to their spread."""


class TransformersModel:
    """Runs `module` on packed tokens. Raises `UnsupportedModelError` if that would be wrong.

    `row_multiple`: each step's tokens are filled up to a multiple of this.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        info: ModelInfo,
        backend: AttentionBackend,
        row_multiple: int = 1,
    ) -> None:
        self.module = module
        self.info = replace(info, attention_backend=backend.name)
        self.backend = backend
        self.device = module.get_input_embeddings().weight.device  # type: ignore[operator]
        self.dtype = next(module.parameters()).dtype
        parameters = inspect.signature(module.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._row_multiple = row_multiple
        self._cache: KVCache | None = None
        self._probe = self_check(module, self.device, info.vocab_size)

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(s.num_elements for s in self._probe.shapes.values()) * self.dtype.itemsize

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._cache = KVCache(
            self._probe.shapes,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self.dtype,
            devices=self._probe.devices,
        )
        self.info = replace(
            self.info,
            num_blocks=num_blocks,
            block_size=block_size,
            kv_bytes_per_token=self.kv_bytes_per_token,
        )

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        assert self._cache is not None
        self._cache.copy_blocks(pairs)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        assert self._cache is not None
        padding = (0, -batch.num_tokens % self._row_multiple)
        logits = _forward(
            self.module,
            F.pad(batch.token_ids, padding),
            F.pad(batch.positions, padding),
            PagedContext(batch, self._cache, self.backend),
            logits_to_keep=batch.logits_index if self._keeps_logits else None,
        )
        if not self._keeps_logits:
            logits = logits[batch.logits_index.to(logits.device)]
        return logits.float()


def self_check(module: torch.nn.Module, device: torch.device, vocab_size: int) -> ProbeContext:
    """Compare a packed forward with the model's own eager attention on each sequence alone.

    Returns what the probe learned of the layers. Raises `UnsupportedModelError` with the reason.
    """
    register_attention()
    generator = torch.Generator().manual_seed(0)
    sequences = [
        torch.randint(0, vocab_size, (length,), generator=generator).to(device)
        for length in SELF_CHECK_LENGTHS
    ]
    starts = [0]
    for length in SELF_CHECK_LENGTHS:
        starts.append(starts[-1] + length)
    probe = ProbeContext(starts)
    positions = torch.cat([torch.arange(n, device=device) for n in SELF_CHECK_LENGTHS])
    with torch.inference_mode():
        try:
            _set_attention(module, "eager")
            expected = torch.cat([_forward_alone(module, ids) for ids in sequences])
            _set_attention(module, ATTENTION_NAME)
            actual = _forward(module, torch.cat(sequences), positions, probe)
        except EngineError:
            raise
        except Exception as error:
            raise UnsupportedModelError(f"a trial forward pass fails: {error}") from error
    if not probe.shapes:
        raise UnsupportedModelError("the model never calls the registered attention function")
    _compare(expected.float(), actual.float(), next(module.parameters()).dtype)
    return probe


def _compare(expected: torch.Tensor, actual: torch.Tensor, dtype: torch.dtype) -> None:
    if not torch.isfinite(expected).all():
        raise UnsupportedModelError(f"the model gives logits that are not finite in {dtype}")
    spread = float(expected.std()) or 1.0
    difference = float((expected - actual).abs().max()) / spread
    if not difference <= SELF_CHECK_TOLERANCE.get(dtype, 0.25):
        raise UnsupportedModelError(
            "a packed forward pass gives other logits than the model alone (off by "
            f"{difference:.2g} standard deviations): it keeps state that is not in its attention"
        )


def _set_attention(module: torch.nn.Module, name: str) -> None:
    module.set_attn_implementation(name)  # type: ignore[operator]


def _forward_alone(module: torch.nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = module(input_ids=token_ids.unsqueeze(0), use_cache=False).logits
    return logits[0]


def _forward(
    module: torch.nn.Module,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    context: PagedContext | ProbeContext,
    logits_to_keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Packed tokens int64[T] give logits [T, V], or [R, V] of the rows to keep."""
    extra: dict[str, Any] = {}
    if logits_to_keep is not None:
        extra["logits_to_keep"] = logits_to_keep
    output = module(
        input_ids=token_ids.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        use_cache=False,
        stonechat=context,
        **extra,
    )
    logits: torch.Tensor = output.logits[0]
    return logits
