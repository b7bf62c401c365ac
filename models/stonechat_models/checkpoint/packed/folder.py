"""The packed weights of a model on disk, or of one whose headers were read."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from stonechat_models.checkpoint.headers import ModelHeaders, TensorHeader, safetensors_headers
from stonechat_models.checkpoint.packed.tensors import Packing, Read
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import UnsupportedModelError


def stored_tensors(model: ModelFiles | ModelHeaders) -> list[TensorHeader]:
    """Return the headers of a model's safetensors files."""
    if isinstance(model, ModelHeaders):
        return list(model.tensors)
    return [tensor for path in model.weights for tensor in safetensors_headers(path)]


@contextmanager
def stored_files(files: ModelFiles) -> Iterator[dict[str, Any]]:
    """Open a model's safetensors files. Gives the file of each stored tensor, by its name."""
    from safetensors import safe_open

    with ExitStack() as stack:
        stored: dict[str, Any] = {}
        for path in files.weights:
            file = stack.enter_context(safe_open(path, framework="pt"))
            stored |= dict.fromkeys(file.keys(), file)
        yield stored


def reader_of(stored: dict[str, Any]) -> Read:
    """Return a function that reads a tensor by its name, from what `stored_files` gives."""
    return lambda name: stored[name].get_tensor(name)


def read_packing(model: ModelFiles | ModelHeaders, read: Read | None = None) -> Packing:
    """Return which weights of a model are packed, and how.

    `read`: see `find_packed`. Raises `UnsupportedModelError` with the name of a format that is not
    read, and `ModelLoadError` for weights with missing or misshapen parts.
    """
    if model.weight_format == "gguf":
        return Packing()
    from stonechat_models.checkpoint.packed.method import read_method
    from stonechat_models.checkpoint.packed.recognise import find_packed

    method = read_method(model.config)
    if model.weight_format == "pickle":
        if method.name and method.is_read_here:
            raise UnsupportedModelError(
                f"its weights are in the {method.label} format, which is read from safetensors "
                "files only"
            )
        return Packing(method.label, is_read_here=not method.name)
    return find_packed(model.name, method, stored_tensors(model), read)


def weight_headers(model: ModelHeaders, packing: Packing) -> list[TensorHeader]:
    """Return the headers of the weights, each packed one as the weight that it stands for."""
    plain = [tensor for tensor in model.tensors if tensor.name not in packing.consumed]
    sizes = {tensor.name: tensor.num_bytes for tensor in model.tensors}
    packed = [
        TensorHeader(
            tensor.name,
            tensor.type_name,
            tensor.shape,
            sum(sizes[name] for name in tensor.parts.values()),
        )
        for tensor in packing.tensors.values()
    ]
    return plain + packed
