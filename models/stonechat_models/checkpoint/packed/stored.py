"""What is known of a model's stored tensors while its packed weights are looked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_models.checkpoint.packed.layouts import MisfitError
from stonechat_models.checkpoint.packed.method import Method
from stonechat_models.checkpoint.packed.tensors import Read
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

if TYPE_CHECKING:
    from stonechat_models.checkpoint.headers import TensorHeader


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The headers of a model's tensors by name, and the quantisation that its config names."""

    model: str
    method: Method
    headers: dict[str, "TensorHeader"]
    read: Read | None
    """Reads a tensor; None if only headers are at hand."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.headers[name].shape

    def parts(self, needed: dict[str, str], optional: dict[str, str]) -> dict[str, str]:
        """Return the names of parts by their roles, with the optional ones that are stored.

        Raises `ModelLoadError` if one that is needed is not stored.
        """
        for name in needed.values():
            if name not in self.headers:
                raise self.missing(name)
        return needed | {role: name for role, name in optional.items() if name in self.headers}

    def missing(self, name: str) -> ModelLoadError:
        """Return the error for a tensor that is not stored."""
        return ModelLoadError(f"{self.model} has no weights for {name}; download it again")

    def misfit(self, name: str) -> ModelLoadError:
        """Return the error for parts of other shapes than that of their part `name`."""
        return ModelLoadError(
            f"{self.model}: the parts of {name} do not fit together; download it again"
        )

    def refuse_words(self, name: str) -> None:
        """Raise `UnsupportedModelError` for weights that are packed in other words than int32."""
        type_name = self.headers[name].type_name
        if type_name != "I32":
            raise self.refusal(f"that is not read: {name} has the type {type_name}")

    def refusal(self, problem: str) -> UnsupportedModelError:
        """Return the error for a format; `problem` follows its name."""
        label = f"{self.method.label} format" if self.method.name else "format"
        return UnsupportedModelError(
            f"its weights are in a packed {label} {problem}; choose another version of the model"
        )


def check_fit(fits: bool) -> None:
    """Raise `MisfitError` unless the parts fit together."""
    if not fits:
        raise MisfitError


def integer_type(bits: int, is_regular: bool, is_symmetric: bool) -> str:
    """Return the type name of integers; see `PackedTensor`."""
    name = f"INT{bits}"
    if not is_regular:
        return f"{name}_IRREGULAR"
    return "INT4_SYM" if bits == 4 and is_symmetric else name
