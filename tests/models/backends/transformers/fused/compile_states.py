"""Compiles the kernels of recurrent layers for GPUs that need not be there, in the sizes of known
models. `test_states_compile` runs it.

Prints one JSON object per kernel: its name, what it was compiled for, its shared memory in bytes,
whether it waits for the kernels before it, whether one is compiled for any padding slot, and the
bytes of registers that its threads spill.
"""

import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stonechat_models.backends.transformers.fused.conv_kernels import (
    conv_keep_kernel,
    conv_packed_kernel,
)
from stonechat_models.backends.transformers.fused.mixers import (
    CHANNELS_AT_ONCE,
    COLUMNS_AT_ONCE,
    SCAN_WARPS,
    TOKENS_AT_ONCE,
    precision_of,
    tile_warps,
)
from stonechat_models.backends.transformers.fused.scan_kernels import (
    delta_scan_kernel,
    delta_solve_kernel,
    mamba_scan_kernel,
    norm_gate_kernel,
    scores_kernel,
)
from stonechat_models.backends.transformers.fused.state_kernels import (
    conv_update_kernel,
    delta_update_kernel,
    gated_norm_kernel,
    mamba_update_kernel,
)
from tests.models.backends.transformers.attention.compile_kernels import ELEMENTS, stack_bytes

PLAIN = {"GROUP": 0, "GROUPS": 1, "KEY": 1, "VALUE": 1}
CONVS = {
    "lfm2": {"CHANNELS": 2048, "TAPS": 3, "ACTIVATES": False, "GATES": True, **PLAIN},
    "qwen3.5": {"CHANNELS": 8192, "TAPS": 4, "ACTIVATES": True, "GATES": False, **PLAIN},
    "qwen3-next": {
        **{"CHANNELS": 8192, "TAPS": 4, "ACTIVATES": True, "GATES": False},
        **{"GROUP": 768, "GROUPS": 16, "KEY": 128, "VALUE": 256},
    },
}
DELTA = {"HEADS": 32, "KEY_HEADS": 16, "DK": 128, "DV": 128, "BLOCK_K": 128, "BLOCK_V": 128}
MAMBA = {"HEADS": 64, "GROUPS": 1, "SIZE": 64, "STATE": 128, "BLOCK_SIZE": 64, "BLOCK_STATE": 128}
FLOATS = ("states", "values", "keys", "scores")
NORM = {"GROUPS": 1, "SIZE": 4096, "BLOCK": 4096}


def argument_type(name, dtype, constants):
    if name in constants:
        return "constexpr"
    if name in ("epsilon", "shortest", "longest"):
        return "fp32"
    if name == "slots":
        return "*i64"
    if name in ("query_start", "context_lens", "sequences"):
        return "*i32"
    if name.startswith("stride") or name in ("padding_slot", "num_tokens"):
        return "i32"
    return f"*{'fp32' if name in FLOATS else ELEMENTS[dtype]}"


def compile_kernel(kernel, dtype, constants, num_warps, capability):
    constants = {**constants, "EARLY": capability >= 90}
    signature = {name: argument_type(name, dtype, constants) for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.startswith("stride")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": 1},
    )
    result = {
        "kernel": kernel.__name__,
        "capability": capability,
        "dtype": str(dtype),
        "shared": compiled.metadata.shared,
        "waits": "griddepcontrol.wait" in compiled.asm["ptx"],
        "any_slot": all(p.do_not_specialize for p in kernel.params if p.name == "padding_slot"),
        "stack": stack_bytes(compiled.asm["cubin"]),
    }
    print(json.dumps(result), flush=True)


def compile_delta(dtype, capability):
    sizes = {**DELTA, "Z_GROUP": 256, "AB_GROUP": 2}
    compile_kernel(delta_update_kernel, dtype, sizes, tile_warps(128 * 128), capability)


def compile_scan(dtype, capability):
    """The gated delta rule over packed tokens."""
    settings = {"PRECISION": precision_of(dtype)}
    sizes = {**DELTA, "AB_GROUP": 2, **settings}
    compile_kernel(delta_solve_kernel, dtype, sizes, SCAN_WARPS, capability)
    columns = {"WIDTH": 8192, "QUERY": 0, "KEY": 2048, "GROUPS": 16, "IS_UNIT": True}
    scores = {**columns, "DK": 128, "BLOCK_K": 128, **settings}
    compile_kernel(scores_kernel, dtype, scores, SCAN_WARPS, capability)
    sizes["BLOCK_V"] = COLUMNS_AT_ONCE
    compile_kernel(delta_scan_kernel, dtype, sizes, SCAN_WARPS, capability)


def compile_packed(dtype, capability):
    """What else computes packed tokens."""
    for conv in CONVS.values():
        constants = {**conv, "BLOCK": CHANNELS_AT_ONCE}
        shared = {name: n for name, n in constants.items() if name != "ACTIVATES"}
        compile_kernel(conv_keep_kernel, dtype, shared, 4, capability)
        constants |= {"HAS_BIAS": True, "TILE": TOKENS_AT_ONCE}
        compile_kernel(conv_packed_kernel, dtype, constants, 4, capability)
    names = ("HEADS", "KEY_HEADS", "DV", "BLOCK_V")
    sizes = {**{name: DELTA[name] for name in names}, "Z_GROUP": 256, "TILE": TOKENS_AT_ONCE}
    compile_kernel(norm_gate_kernel, dtype, sizes, 4, capability)
    settings = {"PRECISION": precision_of(dtype)}
    sizes = {**MAMBA, "BLOCK_SIZE": COLUMNS_AT_ONCE, **settings}
    compile_kernel(mamba_scan_kernel, dtype, sizes, SCAN_WARPS, capability)


def compile_others(dtype, capability):
    for conv in CONVS.values():
        constants = {**conv, "BLOCK": CHANNELS_AT_ONCE, "HAS_BIAS": True}
        compile_kernel(conv_update_kernel, dtype, constants, 4, capability)
    compile_kernel(mamba_update_kernel, dtype, MAMBA, tile_warps(64 * 128), capability)
    compile_kernel(gated_norm_kernel, dtype, NORM, 8, capability)


def compile_some():
    compile_delta(torch.bfloat16, 90)


def compile_all():
    for capability in (80, 89, 90, 120):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            compile_delta(dtype, capability)
            compile_scan(dtype, capability)
            compile_packed(dtype, capability)
            compile_others(dtype, capability)


if __name__ == "__main__":
    compile_all()
