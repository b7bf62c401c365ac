"""Rows of packed safetensors weights, as GGUF blocks of the same numbers or as floats."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import GROUP, Kind
from stonechat_models.checkpoint.packed.tensors import PackedTensor
from stonechat_models.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

    from stonechat_models.checkpoint.packed.layouts import Codes

KINDS = {"INT2": Kind.Q4_1, "INT3": Kind.Q4_1, "INT4": Kind.Q4_1}
"""The types whose integers stay in 4 bits with a scale and an offset for each group."""
KINDS |= {"INT4_SYM": Kind.Q4_0, "MXFP4": Kind.MXFP4}


def packed_kind(type_name: str) -> Kind | None:
    """The packed format that holds a type's own numbers in 4 bits; None if none does."""
    return KINDS.get(type_name)


def packed_rows(
    tensor: PackedTensor,
    parts: "Mapping[str, torch.Tensor]",
    index: npt.NDArray[np.int32],
    kind: Kind,
) -> tuple[Kind, npt.NDArray[np.uint8]]:
    """Return rows of a packed weight in a source format that can be packed as `kind`.

    Its own integers are kept if `kind` holds them, with scales in half precision. int8 does so if
    they lie between -128 and 127 without their zeros, which must be integers. Raises
    `UnsupportedModelError` for scales that half precision does not hold.
    """
    import torch

    assert tensor.layout is not None
    rows = torch.from_numpy(index.astype(np.int64))
    codes = tensor.layout.codes(parts, rows)
    if codes is not None and codes.is_regular:
        if packed_kind(tensor.type_name) == kind:
            if kind == Kind.MXFP4:
                return kind, _mxfp4(codes)
            minima = [] if kind == Kind.Q4_0 else [-codes.scales * codes.zeros]
            return kind, _blocks(tensor.name, codes, minima, _nibbles(codes.values.numpy()))
        signed = codes.values.int() - codes.zeros[:, codes.group_of].int()
        is_whole = torch.equal(codes.zeros, codes.zeros.round())
        if kind == Kind.Q8_0 and is_whole and -128 <= int(signed.min()) <= int(signed.max()) <= 127:
            data = signed.to(torch.int8).numpy().view(np.uint8)
            return Kind.Q8_0, _blocks(tensor.name, codes, [], data)
    values = tensor.layout.floats(parts, rows) if codes is None else codes.floats()
    return Kind.F32, np.ascontiguousarray(values.numpy(), dtype=np.float32).view(np.uint8)


def _mxfp4(codes: "Codes") -> npt.NDArray[np.uint8]:
    """Return blocks of one exponent and 4-bit floats; the scales are powers of two."""
    import torch

    from stonechat_models.checkpoint.packed.floats import FP4_DOUBLED

    exponents = torch.frexp(codes.scales[:, codes.group_of[::GROUP]]).exponent + 127
    head = exponents.clamp(0, 255).to(torch.uint8).unsqueeze(-1).numpy()
    index_of = np.zeros(25, dtype=np.uint8)
    index_of[np.array(FP4_DOUBLED) + 12] = np.arange(16)
    index_of[12] = 0
    data = _nibbles(index_of[codes.values.numpy().astype(np.intp) + 12])
    blocks = np.concatenate([head, data.reshape(*head.shape[:2], -1)], axis=-1)
    return np.ascontiguousarray(blocks.reshape(len(head), -1))


def _nibbles(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Numbers i and i + 16 of each group share a byte."""
    groups = values.reshape(-1, GROUP)
    return groups[:, : GROUP // 2] | (groups[:, GROUP // 2 :] << np.uint8(4))


def _blocks(
    name: str, codes: "Codes", minima: "list[torch.Tensor]", data: npt.NDArray[np.uint8]
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
