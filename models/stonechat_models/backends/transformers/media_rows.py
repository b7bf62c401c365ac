"""Puts the embeddings of images and audio into a forward pass, in the place of token embeddings.

A model for more than text hands the embeddings of all tokens to its decoder. There the rows of
placeholders are replaced. All that the model's own code computes of token ids stays as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.base import StepMedia
from stonechat_models.backends.transformers.attention.interface import ATTENTION_NAME
from stonechat_models.backends.transformers.tower_parts import TOWER_CONFIGS
from stonechat_models.errors import StepError
from stonechat_models.media.encode import decoder_of


@contextmanager
def media_rows(module: nn.Module, media: StepMedia) -> Iterator[None]:
    """Within it, calls of `module` see the media of a step. Rows are counted over all dimensions
    of a call but the last."""

    def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None:
            raise StepError("the model gives its decoder no embeddings")
        return args, {**kwargs, **_replaced(embeddings, media)}

    handle = decoder_of(module).register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def give_own_attention(module: Any) -> None:
    """Let the towers of `module` attend as their own code does, not over the paged cache."""
    for name in TOWER_CONFIGS:
        config = getattr(module.config, name, None)
        if config is None or config._attn_implementation != ATTENTION_NAME:
            continue
        try:
            module.set_attn_implementation({name: "sdpa"})
        except ValueError:  # the tower does not support it
            module.set_attn_implementation({name: "eager"})


def _replaced(embeddings: torch.Tensor, media: StepMedia) -> dict[str, Any]:
    """Return the decoder's arguments that differ. `embeddings`: [N, T, H]."""
    flat, rows = embeddings.flatten(0, 1), media.rows.to(embeddings.device)
    new = media.embeddings.to(flat.device, flat.dtype)
    changes: dict[str, Any] = {"inputs_embeds": flat.index_copy(0, rows, new).view_as(embeddings)}
    if media.layer_embeddings:
        mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        mask[rows] = True
        changes["visual_pos_masks"] = mask.view(embeddings.shape[:2])
        changes["deepstack_visual_embeds"] = [
            layer.to(flat.device, flat.dtype) for layer in media.layer_embeddings
        ]
    return changes
