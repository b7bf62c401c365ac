"""What images and audio change in a step, as the compiled library reads it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import StepMedia
from stonechat_models.backends.native.bindings import MediaStruct
from stonechat_models.backends.native.plan.spec import ModelSpec
from stonechat_models.errors import StepError


@dataclass(frozen=True, slots=True)
class MediaArrays:
    """The arrays of `StepMedia`, contiguous and of the types that the library reads.

    They must stay alive while the library reads them.
    """

    rows: npt.NDArray[np.int64]
    embeddings: npt.NDArray[np.float32]
    layer_embeddings: npt.NDArray[np.float32] | None
    """float32[layers, I, H]"""
    rope_positions: npt.NDArray[np.int64] | None
    visible_ends: npt.NDArray[np.int32] | None

    @classmethod
    def read(cls, media: StepMedia, spec: ModelSpec, num_tokens: int) -> "MediaArrays":
        """Check the shapes. Raises `StepError` for one that does not fit the model or the step."""
        rows = _array(media.rows, np.int64, (len(media.rows),))
        shape = (rows.size, spec.hidden_size)
        embeddings = media.embeddings if rows.size else np.empty(shape, dtype=np.float32)
        layers = [_array(added, np.float32, shape) for added in media.layer_embeddings]
        return cls(
            rows=rows,
            embeddings=_array(embeddings, np.float32, shape),
            layer_embeddings=np.stack(layers) if layers else None,
            rope_positions=_optional(media.rope_positions, np.int64, (3, num_tokens)),
            visible_ends=_optional(media.visible_ends, np.int32, (num_tokens,)),
        )

    def struct(self) -> MediaStruct:
        """Return what the library reads."""
        added = self.layer_embeddings
        return MediaStruct(
            count=self.rows.size,
            layers=0 if added is None else len(added),
            rows=_address(self.rows),
            embeddings=_address(self.embeddings),
            layer_embeddings=_address(added),
            rope_positions=_address(self.rope_positions),
            visible_ends=_address(self.visible_ends),
        )


def _optional(values: Any, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    return None if values is None else _array(values, dtype, shape)


def _array(values: Any, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(values, dtype=dtype)
    if array.shape != shape:
        raise StepError(f"an array of media has the shape {array.shape}, expected {shape}")
    return array


def _address(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
