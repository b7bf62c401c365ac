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

from stonechat_models.backends.transformers.fused.mixers import CHANNELS_AT_ONCE, tile_warps
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
NORM = {"GROUPS": 1, "SIZE": 4096, "BLOCK": 4096}


def argument_type(name, dtype, constants):
    if name in constants:
        return "constexpr"
    if name == "epsilon":
        return "fp32"
    if name == "slots":
        return "*i64"
    if name.startswith("stride") or name == "padding_slot":
        return "i32"
    return f"*{'fp32' if name == 'states' else ELEMENTS[dtype]}"


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
        options={"num_warps": num_warps},
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
            compile_others(dtype, capability)


if __name__ == "__main__":
    compile_all()
