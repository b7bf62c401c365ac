"""What images and audio change in a step, as the compiled library reads it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import StepMedia
from stonechat_models.backends.native.bindings import MediaStruct
from stonechat_models.backends.native.plan.spec import ModelSpec
from stonechat_models.errors import StepError


def media_struct(
    media: StepMedia, spec: ModelSpec, num_tokens: int
) -> tuple[MediaStruct, list[npt.NDArray[Any]]]:
    """Return what the library reads, and its arrays, which must stay alive meanwhile.

    Raises `StepError` for a shape that does not fit the model or the step.
    """
    rows = _array(media.rows, np.int64, (len(media.rows),))
    shape = (rows.size, spec.hidden_size)
    embeddings = media.embeddings if rows.size else np.empty(shape, dtype=np.float32)
    layers = [_array(added, np.float32, shape) for added in media.layer_embeddings]
    arrays = {"rows": rows, "embeddings": _array(embeddings, np.float32, shape)}
    if layers:
        arrays["layer_embeddings"] = np.stack(layers)  # float32[layers, I, H]
    if media.rope_positions is not None:
        arrays["rope_positions"] = _array(media.rope_positions, np.int64, (3, num_tokens))
    if media.visible_ends is not None:
        arrays["visible_ends"] = _array(media.visible_ends, np.int32, (num_tokens,))
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    return MediaStruct(count=rows.size, layers=len(layers), **addresses), list(arrays.values())


def _array(values: Any, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(values, dtype=dtype)
    if array.shape != shape:
        raise StepError(f"an array of media has the shape {array.shape}, expected {shape}")
    return array
