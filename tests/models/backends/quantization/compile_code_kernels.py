"""Compiles the kernels for codes for GPUs that need not be present, through the code that launches
them. `test_codes_compile` runs it, with compute capabilities such as 90.

Prints one JSON object per kernel: its name, what it was compiled for, its shared memory in bytes,
the stack bytes of its threads, and whether it uses tensor cores or multiplies integers.
"""

import json
import sys
from typing import Any

import torch
from compile_ahead import only_compile
from triton.runtime.jit import JITFunction

from stonechat_models.backends.quantization import code_products
from stonechat_models.backends.quantization.codes import Codes
from stonechat_models.backends.quantization.group_codes import Groups, group_codes
from stonechat_models.backends.quantization.random_codes import random_codes
from tests.models.backends.transformers.attention.compile_kernels import stack_bytes

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
    return group_codes(groups, torch.arange(k), 4)


def on_meta(codes: Codes) -> Codes:
    names = ("low", "high", "scales", "extra", "table")
    planes = {name: getattr(codes, name) for name in names}
    moved = {name: None if plane is None else plane.to(META) for name, plane in planes.items()}
    return Codes(codes.format, group=codes.group, **moved)


def compile_products(
    name: str, codes: Codes, capability: int, rows: tuple[int, ...], dtype: torch.dtype
) -> None:
    k = codes.shape[1]
    for num_rows in rows:
        x = torch.empty(num_rows, k, dtype=dtype, device=META)
        output = torch.empty(num_rows, 4096, dtype=dtype, device=META)
        code_products.multiply_into(output, x, codes, None, None)
    if dtype is torch.bfloat16:
        code_products.dequantise_into(torch.empty(64, k, dtype=dtype, device=META), codes)
    for kernel_name, kernel in COMPILED:
        machine_code = kernel.asm["ptx"]
        result = {
            "kernel": kernel_name,
            "type": name,
            "capability": capability,
            "dtype": str(dtype),
            "shared": kernel.metadata.shared,
            "stack": stack_bytes(kernel.asm["cubin"]),
            "tensor_cores": "wgmma" in machine_code or "mma.sync" in machine_code,
            "integers": "dp2a" in machine_code,
        }
        print(json.dumps(result), flush=True)
    COMPILED.clear()


def main(capabilities: list[int], everything: bool) -> None:
    for capability in capabilities:
        only_compile(divmod(capability, 10), capability >= 90)
        record()
        names = ("Q4_K", "Q6_K", "Q8_0", "Q5_K", "IQ4_NL") if everything else ("Q4_K", "Q6_K")
        rows = (1, 2, 4, 16, 64) if everything else (1, 16)
        for name in names:
            codes = on_meta(random_codes(name, 16, 4096, torch.device("cpu")))
            compile_products(name, codes, capability, rows, torch.bfloat16)
        if everything:
            codes = on_meta(random_codes("Q4_K", 16, 4096, torch.device("cpu")))
            compile_products("Q4_K", codes, capability, (1, 16), torch.float32)
            compile_products("INT4", on_meta(int4_groups(4096)), capability, rows, torch.bfloat16)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1].split(",")], sys.argv[2:] == ["--all"])
