"""The weights that quantised layers multiply by."""

import ctypes

import torch

from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear
from stonechat_models.backends.quantization.codes.codes import Codes
from stonechat_models.backends.quantization.cpu_linear import (
    NativeLinear,
    TorchLinear,
    WeightOnlyLinear,
)
from stonechat_models.backends.quantization.fp8_linear import Fp8Linear
from stonechat_models.backends.quantization.groupwise import GroupwiseWeight


def dequantised(layer: torch.nn.Module | GroupwiseWeight | Codes) -> torch.Tensor:
    """float32[out_features, in_features]"""
    match layer:
        case Codes():
            from stonechat_models.backends.quantization.codes.code_products import dequantise_into

            values = torch.empty(layer.shape, dtype=torch.float32, device=layer.low.device)
            dequantise_into(values, layer)
            return values
        case CodedLinear():
            values = torch.cat([dequantised(part) for part in layer.parts])
            if layer.order is None:
                return values
            return torch.empty_like(values).index_copy_(1, layer.order, values)
        case NativeLinear():
            values = torch.empty(layer.out_features, layer._k)
            for i, row in enumerate(values):
                library, matrix = layer._team.library, ctypes.byref(layer._matrix)
                library.read_row(matrix, i, row.data_ptr())
            return values[:, : layer.in_features]
        case TorchLinear():
            return dequantised(layer._quantised)[:, : layer.in_features]
        case GroupwiseWeight():
            values = layer.quantised * layer.scales.float()[..., None]
            if layer.lows is not None:
                values += layer.lows.float()[..., None]
            return values.flatten(1)
        case WeightOnlyLinear() | Fp8Linear():
            return layer._quantised.float() * layer._scales.float()
    raise TypeError(type(layer).__name__)
