"""Compiles the Triton kernels for GPUs that need not be present. `test_triton_compiles` runs it.

Prints one JSON object per kernel: its name, what it was compiled for, its shared memory in bytes,
what its machine code does (tensor cores, float8, the wait for other kernels, early fetches), and
the stack bytes of its threads.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stonechat_models.backends.transformers.attention.tile_sizes import Tiles, TileShape
from stonechat_models.backends.transformers.attention.triton_backend import parts_at_once
from stonechat_models.backends.transformers.attention.triton_decode import decode_kernel
from stonechat_models.backends.transformers.attention.triton_prefill import prefill_kernel
from stonechat_models.backends.transformers.fused.kernels import (
    gated_kernel,
    rms_norm_kernel,
    rope_and_store_kernel,
)
from stonechat_models.backends.transformers.fused.product_choice import SOME_TILES, TILES
from stonechat_models.backends.transformers.fused.rotary import HEADS_AT_ONCE, NUM_WARPS
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    COLUMNS_PER_WARP,
    ROW_COUNTS,
)
from stonechat_models.backends.transformers.fused.row_products.few_rows_kernel import (
    few_rows_kernel,
    few_rows_qkv_kernel,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows_kernel import (
    some_rows_kernel,
)

ELEMENTS = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
}
QUERY_DTYPE = {"query", "sinks", "output"}
KV_DTYPE = {"keys", "values"}
FUSED = {
    "x",
    "added",
    "summed",
    "weight",
    "gate_up",
    "qkv",
    "cosines",
    "sines",
    "query_weight",
    "key_weight",
    "bias",
    "norm_weight",
    "residual",
}
FLOAT32 = {"partial", "peaks", "totals"}
INT32 = {"query_start", "visible_ends", "context_lens", "block_table", "num_done"}
INT64 = {"slots"}
FLOATS = {"scaling", "softcap", "epsilon", "offset", "query_epsilon", "key_epsilon", "limit"}
SHAPES = [  # dtype, head size, group, window, chunks and soft cap
    (torch.bfloat16, 128, 4, False),
    (torch.float16, 64, 3, False),
    (torch.bfloat16, 256, 2, True),
    (torch.bfloat16, 80, 1, False),
    (torch.float32, 32, 1, False),
]


def argument_type(
    name: str, dtype: torch.dtype, kv_dtype: torch.dtype, constants: dict[str, Any]
) -> str:
    if name in constants:
        return "constexpr"
    if name in QUERY_DTYPE | FUSED:
        return f"*{ELEMENTS[dtype]}"
    if name in KV_DTYPE:
        return f"*{ELEMENTS[kv_dtype]}"
    if name in FLOAT32:
        return "*fp32"
    if name in INT32:
        return "*i32"
    if name in INT64:
        return "*i64"
    return "fp32" if name in FLOATS else "i32"


def compile_kernel(
    kernel, dtype, constants, num_warps, num_stages, capability, kv_dtype=None
) -> None:
    kv_dtype = kv_dtype or dtype
    if "EARLY" in kernel.arg_names:
        constants = {**constants, "EARLY": capability >= 90}
    signature = {n: argument_type(n, dtype, kv_dtype, constants) for n in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.startswith("stride_") or name == "size"
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
        "kv_dtype": str(kv_dtype),
        "shared": compiled.metadata.shared,
        "tensor_cores": "wgmma" in assembly or "mma.sync" in assembly,
        "converts_fp8": "e4m3x2" in assembly,
        "waits": "griddepcontrol.wait" in assembly,
        "fetches": "prefetch.global.L2" in assembly,
        "stack": stack_bytes(compiled.asm["cubin"]),
        "cubin_bytes": len(compiled.asm["cubin"]),
    }
    print(json.dumps(result), flush=True)


def stack_bytes(cubin: bytes) -> int:
    """Bytes per thread outside its registers, to which it spills registers."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    return max(int(n) for n in re.findall(r"STACK:(\d+)", dump.stdout))


def compile_decode(
    dtype, size, group, window, capability, kv_dtype=None, splits=(False, True)
) -> None:
    shape = shape_constants(size, group, window)
    padded = shape["BLOCK_DK"]
    tile = Tiles(divmod(capability, 10)).decode(TileShape(group, padded, dtype))
    block_group = triton.next_power_of_2(group)
    launch = (tile.num_warps, tile.num_stages, capability, kv_dtype)
    for is_split in splits:
        constants = {
            **shape,
            "BLOCK_M": tile.rows,
            "BLOCK_K": tile.keys,
            "BLOCK_GROUP": block_group,
            "PARTS": parts_at_once(block_group * padded, tile.num_warps),
            "IS_SPLIT": is_split,
        }
        compile_kernel(decode_kernel, dtype, constants, *launch)


def shape_constants(size: int, group: int, window: bool) -> dict[str, Any]:
    padded = max(16, triton.next_power_of_2(size))
    return {
        "GROUP": group,
        "BLOCK_SIZE": 16,
        "DK": size,
        "DV": size,
        "BLOCK_DK": padded,
        "BLOCK_DV": padded,
        "HAS_SOFTCAP": window,
        "HAS_WINDOW": window,
        "HAS_CHUNKS": window,
        "PRECISION": "ieee",
        "HAS_SINKS": True,
        "UPCAST": False,
    }


def compile_shape(dtype, size, group, window, capability, kv_dtype=None) -> None:
    compile_decode(dtype, size, group, window, capability, kv_dtype)
    shape = shape_constants(size, group, window)
    tile = Tiles(divmod(capability, 10)).prefill(TileShape(group, shape["BLOCK_DK"], dtype))
    constants = {
        **shape,
        "BLOCK_Q": tile.rows // group,
        "BLOCK_M": tile.rows,
        "BLOCK_K": tile.keys,
        "MIN_QUERIES": 2,
    }
    launch = (tile.num_warps, tile.num_stages, capability, kv_dtype)
    for has_ends in (False, True):
        compile_kernel(prefill_kernel, dtype, {**constants, "HAS_ENDS": has_ends}, *launch)


def compile_fused(dtype, capability) -> None:
    for adds in (False, True):
        norm = {"SIZE": 4096, "BLOCK": 4096, "ROUNDS_FIRST": True, "ADDS": adds}
        compile_kernel(rms_norm_kernel, dtype, norm, 8, 3, capability)
    for gelu in (False, True):
        gated = {"SIZE": 14336, "BLOCK": 1024, "GELU": gelu}
        compile_kernel(gated_kernel, dtype, gated, 4, 3, capability)
    for size in (128, 256, 80):
        compile_rotary(dtype, dtype, capability, size)
    for num_rows in ROW_COUNTS:
        tile = TILES[num_rows % len(TILES)]
        compile_few_rows(tile, num_rows, dtype, capability, HAS_NORM=True, HAS_BIAS=True)
        compile_few_rows(tile, num_rows, dtype, capability, HAS_NORM=True, GATED=True, GELU=True)
        compile_few_rows(tile, num_rows, dtype, capability, ADDS=True)
        compile_few_rows_qkv(tile, num_rows, dtype, capability)
    for tile in SOME_TILES if capability in (80, 90) else SOME_TILES[:2]:  # the others are larger
        compile_some_rows(tile, 64, dtype, capability, ADDS=True)
        compile_some_rows(tile, 64, dtype, capability, GATED=True, HAS_BIAS=True)
        compile_some_rows(tile, 16, dtype, capability, IS_EVEN=False)


def compile_some_rows(tile, num_rows, dtype, capability, **features) -> None:
    constants = {
        "ROWS": num_rows,
        "BLOCK_N": max(16, tile.outputs // 2) if "GATED" in features else tile.outputs,
        "BLOCK_K": tile.inputs,
        "IS_EVEN": True,
        "IS_SPLIT": True,
        "LINES": tile.num_lines,
        **dict.fromkeys(("HAS_BIAS", "ADDS", "GATED", "GELU", "UPCAST"), False),
        **features,
    }
    launch = (tile.num_warps, tile.num_stages, capability)
    compile_kernel(some_rows_kernel, dtype, constants, *launch)


def compile_few_rows(tile, num_rows, dtype, capability, **features) -> None:
    constants = {
        "ROWS": num_rows,
        "BLOCK_N": tile.rows // 2 if "GATED" in features else tile.rows,
        "BLOCK_K": COLUMNS_PER_WARP * tile.num_warps,
        "LINES": tile.num_lines,
        **dict.fromkeys(("HAS_NORM", "HAS_BIAS", "ADDS", "GATED", "GELU"), False),
        **features,
    }
    compile_kernel(few_rows_kernel, dtype, constants, tile.num_warps, 3, capability)


def compile_rotary(dtype, kv_dtype, capability, size) -> None:
    constants = {
        "HEADS": 32,
        "KV_HEADS": 8,
        "SIZE": size,
        "QUERY_SIZE": 2 * size if size == 256 else size,
        "ROTARY": size // 2 if size == 80 else size,
        "ANGLES": size // 2,
        "BLOCK": triton.next_power_of_2(size),
        "BLOCK_HEADS": HEADS_AT_ONCE,
        "HAS_NORM": True,
        "ROUNDS_FIRST": True,
        "CLAMPS": kv_dtype != dtype,
    }
    launch = (NUM_WARPS, 3, capability, kv_dtype)
    compile_kernel(rope_and_store_kernel, dtype, constants, *launch)


def compile_few_rows_qkv(tile, num_rows, dtype, capability) -> None:
    constants = {
        "ROWS": num_rows,
        "HEADS": 32,
        "KV_HEADS": 8,
        "SIZE": 128,
        "ANGLES": 128,
        "BLOCK_N": tile.rows // 2,
        "BLOCK_K": COLUMNS_PER_WARP * tile.num_warps,
        "HAS_NORM": True,
        "HAS_BIAS": False,
        "LINES": tile.num_lines,
    }
    compile_kernel(few_rows_qkv_kernel, dtype, constants, tile.num_warps, 3, capability)


def compile_some() -> None:
    compile_decode(*SHAPES[0], 90, splits=(True,))
    compile_some_rows(SOME_TILES[1], 64, torch.bfloat16, 90, GATED=True)


def compile_all() -> None:
    for case in SHAPES:
        compile_shape(*case, 90)
    compile_shape(*SHAPES[0], 80)
    for case, capability in ((SHAPES[0], 89), (SHAPES[0], 90), (SHAPES[1], 90)):
        compile_shape(*case, capability, kv_dtype=torch.float8_e4m3fn)
    for capability in (80, 89, 90, 120):
        compile_fused(torch.bfloat16, capability)
    for capability in (89, 90):
        compile_rotary(torch.bfloat16, torch.float8_e4m3fn, capability, 128)


if __name__ == "__main__":
    compile_all()
