"""From the vector that a model makes of a text to the embedding that a request wants."""

import sys

import torch
import torch.nn.functional as F

from stonechat_models.errors import StepError
from stonechat_models.types import EmbeddingInfo, EmbeddingParams


def finish_embedding(vector: torch.Tensor, params: EmbeddingParams, info: EmbeddingInfo) -> bytes:
    """Cut and normalise a vector float32[D] as `params` say. Return it as little-endian float32.

    Raises `StepError` for a vector with a number that is not finite.
    """
    cut = vector[: params.dimensions]
    is_default = params.normalize is None
    if params.normalize or (is_default and (info.is_normalized or params.dimensions is not None)):
        cut = F.normalize(cut, dim=-1)
    if not cut.isfinite().all():
        raise StepError("the model computed an embedding that is not finite")
    values = cut.contiguous().numpy()
    return (values if sys.byteorder == "little" else values.byteswap()).tobytes()
