"""Compiles the kernels of experts for GPUs that need not be there. `test_experts_compile` runs it.

Prints one JSON object per kernel: its name, what it was compiled for, its shared memory in bytes,
whether its machine code uses tensor cores, and the bytes of registers that its threads spill.
"""

import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stonechat_models.backends.quantization.codes.codes import PAIRS, PLAIN, SIGNED, ZEROS
from stonechat_models.backends.transformers.fused.moe.coded_expert_kernel import (
    coded_product_kernel,
)
from stonechat_models.backends.transformers.fused.moe.coded_experts import (
    CODED_TILES,
    FLOAT32_CODED_TILES,
)
from stonechat_models.backends.transformers.fused.moe.expert_kernels import (
    GELU_TANH,
    NONE,
    SILU,
    expert_product_kernel,
    router_kernel,
    sort_pairs_kernel,
    weighted_sum_kernel,
)
from stonechat_models.backends.transformers.fused.moe.experts import (
    FLOAT32_TILES,
    SORTED_AT_ONCE,
    SUM_BLOCK,
    TILES,
)
from tests.models.backends.transformers.attention.compile_kernels import ELEMENTS, stack_bytes

ACTIVATIONS = {"x", "weight", "bias", "output", "products", "routing", "logits", "correction"}
CODES = {"low": "*i32", "high": "*i16", "scales": "*i16", "extra": "*i32", "table": "*fp32"}
FORMATS = {
    "MXFP4": {"UNITS_PER_SCALE": 1, "HALVES": 1, "HIGH_BITS": 0, "SCALING": PLAIN, "OFFSET": 0},
    "Q4_K": {"UNITS_PER_SCALE": 1, "HALVES": 1, "HIGH_BITS": 0, "SCALING": PAIRS, "OFFSET": 0},
    "Q6_K": {"UNITS_PER_SCALE": 1, "HALVES": 2, "HIGH_BITS": 2, "SCALING": SIGNED, "OFFSET": 32},
    "AFFINE4": {"UNITS_PER_SCALE": 2, "HALVES": 1, "HIGH_BITS": 0, "SCALING": ZEROS, "OFFSET": 0},
}
PLANES = {
    "MXFP4": {"scales": "*u8"},
    "Q4_K": {},
    "Q6_K": {"scales": "*i8", "extra": "*fp16"},
    "AFFINE4": {"scales": "*bf16", "extra": "*bf16"},
}
INT64 = {"expert_ids", "ids", "stride_expert"}
FLOATS = {"alpha", "limit", "up_offset", "scale"}
UNALIGNED = {"num_pairs", "num_tiles", "block_m", "top_k"}


def argument_type(name, dtype, constants, planes):
    if name in constants:
        return "constexpr"
    if name in FLOATS:
        return "fp32"
    if name in ACTIVATIONS:
        return f"*{ELEMENTS[dtype]}"
    if name in CODES:
        return planes.get(name, CODES[name])
    if name.startswith("tile_"):
        return "*i32"
    integer = "i64" if name in INT64 else "i32"
    return integer if name in UNALIGNED or name.startswith("stride") else f"*{integer}"


def compile_kernel(kernel, dtype, constants, num_warps, num_stages, capability, planes=None):
    constants = {**constants, "EARLY": capability >= 90}
    signature = {
        name: argument_type(name, dtype, constants, planes or {}) for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name] not in ("constexpr", "fp32") and name not in UNALIGNED
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    assembly = compiled.asm["ptx"]
    result = {
        "kernel": kernel.__name__,
        "capability": capability,
        "dtype": str(dtype),
        "block_m": constants.get("BLOCK_M"),
        "shared": compiled.metadata.shared,
        "tensor_cores": "wgmma" in assembly or "mma.sync" in assembly,
        "stack": stack_bytes(compiled.asm["cubin"]),
    }
    print(json.dumps(result), flush=True)


def compile_product(dtype, tile, capability, *, is_sorted=True, **changes):
    is_transposed = changes.pop("is_transposed", False)
    constants = {
        "COLUMNS": 1536,
        "SIZE": 2048,
        "BLOCK_M": tile.pairs,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.inner,
        "IS_SORTED": is_sorted,
        "ACTIVATION": SILU.value,
        "IS_GATED": True,
        "IS_INTERLEAVED": is_transposed,
        "HAS_BIAS": is_transposed,
        "PRECISION": "ieee",
        "UPCAST": False,
        "stride_column" if is_transposed else "stride_inner": 1,
        **changes,
    }
    compile_kernel(
        expert_product_kernel, dtype, constants, tile.num_warps, tile.num_stages, capability
    )


def compile_coded(type_name, dtype, tile, capability, **changes):
    constants = {
        "COLUMNS": 1536,
        "UNITS": 64,
        **FORMATS[type_name],
        "KIND": 2 if type_name == "MXFP4" else 0,
        "BLOCK_M": tile.pairs,
        "BLOCK_N": tile.columns,
        "BLOCK_UNITS": tile.units,
        "IS_SORTED": True,
        "ACTIVATION": SILU.value,
        "IS_GATED": True,
        "IS_INTERLEAVED": True,
        "HAS_BIAS": True,
        "UPCAST": False,
        **changes,
    }
    launch = (tile.num_warps, tile.num_stages, capability, PLANES[type_name])
    compile_kernel(coded_product_kernel, dtype, constants, *launch)


def compile_others(dtype, capability):
    sort = {"NUM_EXPERTS": 128, "BLOCK_EXPERTS": 256, "BLOCK": SORTED_AT_ONCE}
    compile_kernel(sort_pairs_kernel, dtype, sort, 4, 3, capability)
    router = {
        "NUM_EXPERTS": 128,
        "BLOCK": 128,
        "USES_SIGMOID": True,
        "HAS_CORRECTION": True,
        "NORMALISES": True,
    }
    compile_kernel(router_kernel, dtype, router, 1, 3, capability)
    total = {"SIZE": 2048, "BLOCK": SUM_BLOCK, "ADDS": True}
    compile_kernel(weighted_sum_kernel, dtype, total, 4, 3, capability)


def compile_some():
    compile_product(torch.bfloat16, TILES[16], 90)


def compile_all():
    plain = {"ACTIVATION": NONE.value, "IS_GATED": False}
    for capability in (80, 89, 90, 120):
        compile_others(torch.bfloat16, capability)
        for tile in TILES.values():
            compile_product(torch.bfloat16, tile, capability)
            compile_product(torch.bfloat16, tile, capability, **plain)
            compile_product(torch.float16, tile, capability, is_transposed=True, SIZE=2880)
        compile_product(torch.bfloat16, TILES[16], capability, is_sorted=False)
        compile_product(torch.bfloat16, TILES[16], capability, ACTIVATION=GELU_TANH.value)
        for type_name in FORMATS:
            for pairs in TILES:
                compile_coded(type_name, torch.bfloat16, CODED_TILES[pairs], capability)
        compile_coded("MXFP4", torch.float32, FLOAT32_CODED_TILES[32], capability)
        for tile in set(FLOAT32_TILES.values()):
            compile_product(torch.float32, tile, capability)


if __name__ == "__main__":
    compile_all()
