"""Rows of packed safetensors weights, as GGUF blocks of the same numbers or as floats."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import GROUP, Kind, Source
from stonechat_models.checkpoint.packed.layouts import Codes
from stonechat_models.checkpoint.packed.tensors import PackedTensor
from stonechat_models.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

KINDS = {"INT2": Kind.AFFINE4, "INT3": Kind.AFFINE4, "INT4": Kind.AFFINE4}
"""The types whose integers stay in 4 bits with a scale and an offset for each group."""
SYMMETRIC_TYPE = "INT4_SYM"


def packed_kind(type_name: str) -> Kind | None:
    """The packed format that holds a type's own integers in 4 bits; None if none does."""
    return Kind.SYMMETRIC4 if type_name == SYMMETRIC_TYPE else KINDS.get(type_name)


def packed_rows(
    tensor: PackedTensor,
    parts: "Mapping[str, torch.Tensor]",
    index: npt.NDArray[np.int32],
    kind: Kind,
) -> tuple[Source, npt.NDArray[np.uint8]]:
    """Return rows of a packed weight in a source format that can be packed as `kind`.

    Its own integers are kept if `kind` holds them, with scales in half precision. int8 does so if
    they lie between -128 and 127 without their zeros. Raises `UnsupportedModelError` for scales
    that half precision does not hold.
    """
    import torch

    assert tensor.layout is not None
    rows = torch.from_numpy(index.astype(np.int64))
    codes = tensor.layout.codes(parts, rows)
    if codes is not None and codes.is_regular:
        if packed_kind(tensor.type_name) == kind:
            return _four_bits(tensor.name, codes, kind)
        signed = codes.values.int() - codes.zeros[:, codes.group_of].int()
        if kind == Kind.INT8 and -128 <= int(signed.min()) <= int(signed.max()) <= 127:
            data = signed.to(torch.int8).numpy().view(np.uint8)
            return Source.Q8_0, _blocks(tensor.name, codes, [], data)
    values = tensor.layout.floats(parts, rows) if codes is None else codes.floats()
    return Source.FLOAT, np.ascontiguousarray(values.numpy(), dtype=np.float32).view(np.uint8)


def _four_bits(name: str, codes: Codes, kind: Kind) -> tuple[Source, npt.NDArray[np.uint8]]:
    values = codes.values.numpy().reshape(-1, GROUP)
    halves = values[:, : GROUP // 2] | (values[:, GROUP // 2 :] << 4)
    if kind == Kind.SYMMETRIC4:
        return Source.Q4_0, _blocks(name, codes, [], halves)
    return Source.Q4_1, _blocks(name, codes, [-codes.scales * codes.zeros], halves)


def _blocks(
    name: str, codes: Codes, minima: "list[torch.Tensor]", data: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Return rows of GGUF blocks: the scale of each group, its minimum if any, and its data."""
    group_of = codes.group_of[::GROUP]
    factors = [values[:, group_of].half().numpy() for values in (codes.scales, *minima)]
    is_lost = not factors[0].any() and bool(codes.floats().any())
    if is_lost or not all(np.isfinite(values).all() for values in factors):
        raise UnsupportedModelError(
            f"{name} has scales that half precision does not hold; use --backend transformers"
        )
    head = np.ascontiguousarray(np.stack(factors, axis=-1)).view(np.uint8)
    n, groups = head.shape[:2]
    blocks = np.concatenate([head, data.reshape(n, groups, -1)], axis=-1)
    return np.ascontiguousarray(blocks.reshape(n, -1))
