"""Compiles the kernel that quantises rows to float8, for GPUs that need not be present.

Prints the bytes of each kernel's machine code, and whether it converts to float8.
"""

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stonechat_models.backends.quantization.fp8_triton import fp8_rows_kernel as kernel

TYPES = {"x": "*bf16", "quantised": "*fp8e4nv", "scales": "*fp32", "stride_x": "i32"}
TYPES |= {"limit": "fp32", "least": "fp32"}


def compile_for(capability: int, size: int, num_warps: int) -> None:
    constants = {"SIZE": size, "BLOCK": triton.next_power_of_2(size)}
    signature = {name: TYPES.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(3,): [["tt.divisibility", 16]]}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps},
    )
    print(json.dumps([len(compiled.asm["cubin"]), "e4m3x2" in compiled.asm["ptx"]]), flush=True)


if __name__ == "__main__":
    for capability in (89, 90):
        compile_for(capability, 4096, 8)
        compile_for(capability, 28672, 16)
