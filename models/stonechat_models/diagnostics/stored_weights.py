"""Sizes a model whose quantised weights stay on a CUDA device as they are stored."""

from dataclasses import replace

import torch
from torch import nn

from stonechat_models.backends.transformers.stored.choice import kept_names
from stonechat_models.checkpoint.headers import Footprint, ModelHeaders
from stonechat_models.checkpoint.packed.folder import weight_headers
from stonechat_models.checkpoint.packed.tensors import Packing

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def stored_footprint(
    model: ModelHeaders, packing: Packing, empty: nn.Module, dtype: torch.dtype, floats: Footprint
) -> Footprint:
    """Return what the model takes, within a few per cent.

    `empty` is its module on the meta device, and `floats` what it takes in `dtype`.
    """
    kept = kept_names(model, packing, empty)
    sizes = {
        w.name: w.num_bytes if w.name in kept else w.num_elements * dtype.itemsize
        for w in weight_headers(model, packing)
    }
    total = sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    decode_bytes = total - round(experts * (1.0 - model.config.expert_share))
    if any(name.endswith(HEAD) for name in sizes):  # a step reads only single rows of it
        decode_bytes -= sum(size for name, size in sizes.items() if name.endswith(EMBEDDING))
    return replace(floats, weight_bytes=total, decode_bytes=decode_bytes)
