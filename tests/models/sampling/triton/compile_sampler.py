"""Compiles the sampler's Triton kernels for GPUs that need not be present.

`test_sampler_compiles` runs it. Its arguments are compute capabilities and names of kernels;
without names it compiles all. Prints one JSON object per kernel and compute capability.
"""

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stonechat_models.sampling.triton import edit_kernels as triton_edit_kernels
from stonechat_models.sampling.triton import kernels as triton_kernels
from stonechat_models.sampling.triton import truncation as triton_truncation
from tests.models.backends.transformers.attention.compile_kernels import stack_bytes

TYPES = {
    "logits": "*fp32",
    "records": "*i64",
    "chunk_bests": "*i64",
    "tokens": "*i64",
    "tops": "*i64",
    "peaks": "*fp64",
    "masses": "*fp64",
    "chosen": "*fp64",
    "candidates": "*fp32",
    "first_level": "*fp32",
    "second_level": "*fp32",
    "masks": "*i32",
}
ALIGNED = {"logits", "records", "candidates", "first_level", "width", "vocab_size"}
KERNELS = [  # with constants and warps, for a vocabulary of 128,256 tokens
    (triton_kernels.peak_kernel, {"CHUNKS": 32}, 4),
    (triton_truncation.tally_kernel, {}, 8),
    (triton_truncation.refine_kernel, {}, 8),
    (triton_truncation.gather_kernel, {}, 8),
    (triton_truncation.threshold_kernel, {"TILE": 512}, 16),
    (triton_kernels.choose_kernel, {"DEEP": True, "NUM_ROOTS": 32}, 2),
    (triton_kernels.tops_kernel, {"CHUNKS": 32}, 4),
    (triton_edit_kernels.edit_kernel, {"TILE": 512}, 4),
    (triton_edit_kernels.mask_kernel, {}, 4),
]
EDITS = (triton_edit_kernels.edit_kernel, triton_edit_kernels.mask_kernel)
"""They change float32 in place."""


def compile_for(capability: int, only: list[str]) -> None:
    for kernel, constants, num_warps in KERNELS:
        if only and kernel.__name__ not in only:
            continue
        reads = "logits" in kernel.arg_names and kernel not in EDITS
        for logits in ("*fp32", "*bf16") if reads else ("*fp32",):
            compile_kernel(kernel, constants, num_warps, capability, TYPES | {"logits": logits})


def compile_kernel(
    kernel: Any, constants: dict[str, Any], num_warps: int, capability: int, types: dict[str, str]
) -> None:
    names = kernel.arg_names
    types = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in ALIGNED}
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps},
    )
    result = {
        "kernel": kernel.__name__,
        "capability": capability,
        "shared": compiled.metadata.shared,
        "stack": stack_bytes(compiled.asm["cubin"]),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    for word in filter(str.isdigit, words):
        compile_for(int(word), [name for name in words if not name.isdigit()])
