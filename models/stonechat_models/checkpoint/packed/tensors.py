"""A model's packed weights: which stored tensors are the parts of which weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from stonechat_models.errors import ModelLoadError, UnsupportedModelError

if TYPE_CHECKING:
    import torch

    from stonechat_models.checkpoint.packed.layouts import Layout

Read = Callable[[str], "torch.Tensor"]
"""Reads a stored tensor by its name."""
OTHER_TOWER = "the vision towers of MLX files are not read"
CHUNK_ROWS = 4096
"""How many rows are computed in float32 at a time."""


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A weight in a packed format. `layout` is None if transformers reads it.

    `type_name` says what the compiled kernels can keep: INT4 stays in 4 bits, and INT4_SYM does so
    without zeros. INT4_IRREGULAR has groups that are not runs of 32 columns.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    """The names of the stored tensors, by their role in the layout."""
    layout: "Layout | None"
    is_flat: bool = False
    """The shape is not in the headers: `shape` is only the number of weights."""
    num_spare: int = 0
    """How many columns less than in `shape` there may be, which the headers do not tell."""
    run: int = 0
    """How many columns share a scale, as far as the headers tell. 0: all of a row."""

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    def can_have(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is the weight's, as far as the headers tell."""
        if any(size < 1 for size in shape):
            return False
        if self.is_flat:  # two weights in a byte
            return self.num_elements == prod(shape) + prod(shape) % 2
        least = self.shape[-1] - self.num_spare
        return self.shape[:-1] == shape[:-1] and least <= shape[-1] <= self.shape[-1]

    def read(self, read: Read) -> "dict[str, torch.Tensor]":
        """Read the parts. Raises `ModelLoadError` if they say another shape than the headers."""
        from stonechat_models.checkpoint.packed.layouts import MisfitError

        assert self.layout is not None
        parts = {role: read(name) for role, name in self.parts.items()}
        try:
            shape = self.layout.stored_shape(parts)
        except MisfitError as error:
            raise self._misfit() from error
        if shape is not None and not self.can_have(shape):
            raise self._misfit()
        return parts

    def _misfit(self) -> ModelLoadError:
        return ModelLoadError(f"the parts of {self.name} do not fit together; download it again")

    def values(self, read: Read, dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        """Read the whole weight, as float32 if no dtype is given."""
        import torch

        parts, dtype = self.read(read), dtype or torch.float32
        assert self.layout is not None
        shape = self.layout.stored_shape(parts) or self.shape
        matrix = torch.empty((prod(shape[:-1]), shape[-1]), dtype=dtype)
        for start in range(0, len(matrix), CHUNK_ROWS):
            rows = torch.arange(start, min(start + CHUNK_ROWS, len(matrix)))
            matrix[rows] = self.layout.floats(parts, rows).to(dtype)
        return matrix.reshape(shape)


@dataclass(frozen=True, slots=True)
class Packing:
    """All packed weights of a model, by their transformers names."""

    label: str = ""
    """The format as messages show it."""
    is_read_here: bool = True
    """Whether this package reads them, and not transformers."""
    tensors: Mapping[str, PackedTensor] = field(default_factory=dict)
    consumed: frozenset[str] = frozenset()
    """The stored tensors that are parts of these, or that nothing needs."""
    spare_biases: frozenset[str] = frozenset()
    """Biases of packed layers, which some writers add with zeros to layers that have none."""
    has_own_names: bool = False
    """Whether parts of the model have names that transformers does not know."""

    def refuse_own_names(self) -> None:
        """Raise `UnsupportedModelError` for weights that PyTorch cannot have."""
        if self.has_own_names:
            raise UnsupportedModelError(
                f"its weights are in the {self.label} format of models that see, which only the "
                "compiled path reads, for text; choose another version of the model"
            )
