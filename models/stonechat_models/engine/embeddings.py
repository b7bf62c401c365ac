"""From the vector that a model makes of a text to the embedding or score that a request wants."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from stonechat_models.errors import StepError
from stonechat_models.model_info import EmbeddingInfo, RankingInfo
from stonechat_models.types import EmbeddingParams

ACTIVATIONS: Mapping[str, Callable[[np.float32], np.float32]] = {
    "Identity": lambda number: number,
    "Sigmoid": lambda number: np.exp(-np.logaddexp(0, -number)),  # also of large numbers
}
"""What makes a score of a number, for models that generate."""
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


def finish_score(
    vector: npt.NDArray[np.float32], head: npt.NDArray[np.float32] | None, info: RankingInfo
) -> bytes:
    """Return the score and its number, as little-endian float32.

    `vector`: a hidden state float32[H] for `head`, or the logits float32[1 or 2] of the model's
    tokens. Raises `StepError` for a number that is not finite.
    """
    number = np.float32(vector[0] - vector[1:].sum() if head is None else vector @ head)
    if not np.isfinite(number):
        raise StepError("the model computed a number that is not finite")
    return np.array([ACTIVATIONS[info.activation](number), number], "<f4").tobytes()
