"""From the vector that a model makes of a text to the embedding that a request wants."""

import numpy as np
import numpy.typing as npt

from stonechat_models.errors import StepError
from stonechat_models.model_info import EmbeddingInfo
from stonechat_models.types import EmbeddingParams

LEAST_LENGTH = np.float32(1e-12)
"""A shorter vector is not stretched to length 1."""


def finish_embedding(
    vector: npt.NDArray[np.float32], params: EmbeddingParams, info: EmbeddingInfo | None
) -> bytes:
    """Cut and normalise a vector float32[D] as `params` say. Return it as little-endian float32.

    `info`: None for the score of a reranker, which stays as it is.

    Raises `StepError` for a vector with a number that is not finite.
    """
    cut = vector[: params.dimensions]
    if not np.isfinite(cut).all():
        raise StepError("the model computed a number that is not finite")
    is_default = params.normalize is None
    is_normalized = info is not None and info.is_normalized
    if params.normalize or (is_default and (is_normalized or params.dimensions is not None)):
        cut = cut / max(np.linalg.norm(cut), LEAST_LENGTH)
    return cut.astype("<f4").tobytes()
