"""The rotary positions of prompts with images or videos in time, height and width (M-RoPE)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stonechat_models.errors import StepError
from stonechat_models.types import MediaInput, MediaTensor


def grid_positions(
    module: Any, token_ids: Sequence[int], media: Sequence[MediaInput]
) -> tuple[npt.NDArray[np.int64], int]:
    """Return int64[3, P], and what the position of each later token is above its index.

    `module`: a model whose `get_rope_index` knows them from the `image_grid_thw` of the images. Its
    weights are not read. It tells media of a modality apart by the text between them: where two
    touch, a token stands there for it alone. Raises `StepError` if an image has no grid.
    """
    kinds = np.zeros(len(token_ids), np.int32)
    gaps: list[int] = []  # where media of one modality touch
    grids: dict[str, list[npt.NDArray[Any]]] = {"image": [], "video": []}
    seconds: list[float] = []
    latest, end = "", -1
    visible = (medium for medium in media if medium.modality in grids)
    for medium in sorted(visible, key=lambda medium: medium.places[0]):
        for start, length in medium.places:
            kinds[start : start + length] = 1 if medium.modality == "image" else 2
        tensor = medium.tensors.get("image_grid_thw")
        if tensor is None:
            raise StepError("an image has no image_grid_thw, which the model's positions need")
        grid, start = as_array(tensor).reshape(-1, 3), medium.places[0][0]
        touches = (latest, end) == (medium.modality, start)
        latest, end = medium.modality, sum(medium.places[-1])
        if touches and medium.modality == "video" and as_array(medium.tensors["piece_number"]):
            grids["video"][-1] = grids["video"][-1] + [1, 0, 0]
            continue
        grids[medium.modality].append(grid)
        if touches:
            gaps.append(start)
        if medium.modality == "video":
            seconds.append(as_array(medium.tensors["second_per_grid_ts"]).item())
    arguments = {
        f"{modality}_grid_thw": torch.from_numpy(np.concatenate(parts).astype(np.int64))
        for modality, parts in grids.items()
        if parts
    }
    if seconds:
        arguments["second_per_grid_ts"] = torch.tensor(seconds)
    positions, delta = rope_index_of(module)(
        input_ids=torch.from_numpy(np.insert(np.array(token_ids), gaps, 0))[None],
        mm_token_type_ids=torch.from_numpy(np.insert(kinds, gaps, 0))[None],
        **arguments,
    )
    found = np.delete(positions[:, 0].numpy(), [gap + i for i, gap in enumerate(gaps)], axis=1)
    found -= np.searchsorted(gaps, np.arange(len(kinds)), "right")
    return found, int(found.max()) + 1 - len(kinds) if gaps else int(delta)


def rope_index_of(module: Any) -> Any:
    """Return the model's `get_rope_index`; None if it has positions in one dimension."""
    inner = getattr(module, "base_model", module)
    return getattr(module, "get_rope_index", None) or getattr(inner, "get_rope_index", None)


def as_array(tensor: MediaTensor) -> npt.NDArray[Any]:
    """Return the array, which shares the tensor's memory and is read-only."""
    return np.frombuffer(tensor.data, dtype=tensor.dtype).reshape(tensor.shape)
