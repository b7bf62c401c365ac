"""Counts the kernels that a device would run, from operators that run on a CPU."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty"}
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select"}
"""Operators that make the host wait for the device. A CUDA graph cannot contain them."""


class _Operators(TorchDispatchMode):
    def __init__(self, launches: Counter[str]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        is_new = not _storages(result) & _storages((*args, *(kwargs or {}).values()))
        if name not in NO_KERNEL and (is_new or func._schema.is_mutable):
            self.launches[name] += 1
        return result


def _storages(values: Any) -> set[int]:
    """Return the storages of all tensors. A view, or a no-op cast, shares its input's."""
    tensors = [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@contextmanager
def counted_launches(monkeypatch: Any) -> Iterator[Counter[str]]:
    """Count operators and interpreted Triton kernels, by name. Operators that Triton's interpreter
    runs inside a kernel do not count."""
    launches: Counter[str] = Counter()
    run = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches[self.fn.__name__] += 1
        with _disable_current_modes():
            return run(self, *args, **kwargs)

    with monkeypatch.context() as patch, _Operators(launches):
        patch.setattr(GridExecutor, "__call__", launch)
        yield launches
