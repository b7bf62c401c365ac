"""A weight that transformers loads, and that is computed only then."""

from collections.abc import Callable
from typing import Any

import torch


class LazyWeight:
    """A weight that is computed when it is indexed, as slices of safetensors files are."""

    def __init__(self, values: Callable[[], torch.Tensor]) -> None:
        self._values = values

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return the weight, or the part of it that `index` names."""
        return self._values()[index]
