"""Compiles the kernels for codes for GPUs that need not be present, through the code that launches
them. `test_codes_compile` runs it, with a compute capability such as 90. One process compiles for
one of them: Triton takes the same device for all, and compiles each kernel once.

Fails if a product uses a kernel that `compile_products` leaves out.
Prints one JSON object per kernel: its name, what it was compiled for, its shared memory in bytes,
the stack bytes of its threads, and whether it multiplies integers.
"""

import json
import sys
from typing import Any

import torch
from compile_ahead import only_compile
from triton.runtime._async_compile import FutureKernel
from triton.runtime.jit import JITFunction

from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear
from stonechat_models.backends.quantization.codes.codes import Codes
from stonechat_models.backends.quantization.codes.float_codes import float4_codes, float8_codes
from stonechat_models.backends.quantization.codes.group_codes import (
    Groups,
    affine_codes,
    exact_dtype,
    group_codes,
)
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.stored.code_compile import compile_products
from tests.models.backends.transformers.attention.compile_kernels import stack_bytes
from tests.models.random_codes import random_codes

META = torch.device("meta")
COMPILED: list[Any] = []


def record() -> None:
    launch = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = launch(self, *args, **kwargs)
        COMPILED.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = run


def int4_groups(k: int) -> Codes:
    values = torch.randint(0, 16, (16, k), dtype=torch.uint8)
    scales = torch.rand(16, k // 128).half().float()
    zeros = torch.randint(0, 16, scales.shape).float()
    groups = Groups(values, scales, zeros, torch.arange(k) // 128)
    return group_codes(groups, torch.arange(k), 4, exact_dtype([groups.scales]))


def affine(k: int) -> Codes:
    """As MLX has them, with 5 bits."""
    values = torch.randint(0, 32, (16, k), dtype=torch.uint8)
    scales = torch.rand(16, k // 64).bfloat16()
    return affine_codes(values, scales, -scales, 5)


def float_matrices(k: int) -> dict[str, Codes]:
    """FP8 with scales of whole rows and of 128 columns, and NVFP4."""
    bits = torch.randint(127, (16, k), dtype=torch.uint8)
    matrices = {
        "FP8": float8_codes(bits, torch.rand(16, 1), k),
        "FP8, blocks": float8_codes(bits, torch.rand(16, k // 128), 128),
        "NVFP4": float4_codes(bits[:, ::2], bits[:, ::16], 0.01),
    }
    return {name: codes for name, codes in matrices.items() if codes is not None}


def on_meta(codes: Codes) -> Codes:
    names = ("low", "high", "scales", "extra", "table")
    planes = {name: getattr(codes, name) for name in names}
    moved = {name: None if plane is None else plane.to(META) for name, plane in planes.items()}
    return Codes(codes.format, group=codes.group, **moved)


def taken() -> dict[str, tuple[str, Any]]:
    """The kernels since the last call, by their hash. Those compiled in threads are complete."""
    found = [(name, k.result() if isinstance(k, FutureKernel) else k) for name, k in COMPILED]
    COMPILED.clear()
    return {kernel.hash: (name, kernel) for name, kernel in found}


def compile_layer(
    name: str, codes: Codes, capability: int, dtype: torch.dtype, *, has_bias: bool = False
) -> None:
    n = codes.shape[0]
    bias = None
    if has_bias:
        values = torch.empty(2 * n, dtype=dtype, device=META)
        bias = torch.nn.Parameter(values, requires_grad=False)
    layer = CodedLinear([codes, codes], bias, Scratch(META, dtype), dtype)
    compile_products([layer])
    ahead = taken()
    for num_rows in range(1, 10):
        layer(torch.empty(num_rows, codes.shape[1], dtype=dtype, device=META))
    assert taken().keys() == ahead.keys()
    for kernel_name, kernel in ahead.values():
        result = {
            "kernel": kernel_name,
            "type": name,
            "capability": capability,
            "dtype": str(dtype),
            "shared": kernel.metadata.shared,
            "stack": stack_bytes(kernel.asm["cubin"]),
            "integers": "dp2a" in kernel.asm["ptx"],
        }
        print(json.dumps(result), flush=True)


def main(capability: int, everything: bool) -> None:
    only_compile(divmod(capability, 10), capability >= 90)
    record()
    names = ("Q4_K", "Q6_K", "Q8_0", "Q5_K", "IQ4_NL") if everything else ("Q4_K",)
    for name in names:
        codes = on_meta(random_codes(name, 16, 4096, torch.device("cpu")))
        compile_layer(name, codes, capability, torch.bfloat16)
    if everything:
        codes = on_meta(random_codes("Q4_K", 16, 4096, torch.device("cpu")))
        compile_layer("Q4_K", codes, capability, torch.float32)
        for name, codes in float_matrices(4096).items():
            compile_layer(name, on_meta(codes), capability, torch.bfloat16)
        int4 = on_meta(int4_groups(4096))
        compile_layer("AFFINE5", on_meta(affine(4096)), capability, torch.bfloat16)
        compile_layer("INT4", int4, capability, torch.bfloat16, has_bias=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] == ["--all"])
