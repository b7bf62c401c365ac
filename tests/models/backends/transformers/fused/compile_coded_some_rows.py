"""Compiles the product for some rows with codes for GPUs that need not be present, through the code
that launches it. `test_coded_some_rows_compiles` runs it, with a compute capability such as 90.

Prints one JSON object per kernel: what it was compiled for, its shared memory in bytes, the stack
bytes of its threads, and how often its loop loads without copying ahead or moves numbers from lane
to lane.
"""

import json
import re
import sys
from typing import Any

import torch
from compile_ahead import only_compile
from triton.runtime.jit import JITFunction

from stonechat_models.backends.quantization.codes.codes import Codes
from stonechat_models.backends.transformers.fused.coded_choice import CODED_TILES
from stonechat_models.backends.transformers.fused.row_products.coded_some_rows import (
    CodedRows,
    with_wide_scales,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    SomeRows,
    SomeRowsTile,
)
from tests.models.backends.quantization.compile_code_kernels import (
    META,
    affine,
    float_matrices,
    int4_groups,
    on_meta,
)
from tests.models.backends.transformers.attention.compile_kernels import stack_bytes
from tests.models.random_codes import random_codes

K = 4096
NUM_MULTIPROCESSORS = 132
COMPILED: list[Any] = []


def record() -> None:
    launch = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        COMPILED.append(launch(self, *args, **kwargs))
        return COMPILED[-1]

    JITFunction.run = run


def compile_case(
    name: str,
    codes: Codes,
    num_rows: int,
    tile: SomeRowsTile,
    capability: int,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    counters = torch.empty(64, dtype=torch.int32, device=META)
    way = CodedRows(SomeRows(tile, NUM_MULTIPROCESSORS, counters))
    x = torch.empty(num_rows, K, dtype=dtype, device=META)
    output = torch.empty(num_rows, len(codes.low), dtype=dtype, device=META)
    way(output, x, on_meta(with_wide_scales(codes)), None, compiles_only=True)
    kernel = COMPILED.pop()
    loop = kernel.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
    result = {
        "type": name,
        "num_rows": num_rows,
        "capability": capability,
        "shared": kernel.metadata.shared,
        "stack": stack_bytes(kernel.asm["cubin"]),
        "tensor_cores": bool(re.search(r"wgmma|mma\.sync", kernel.asm["ptx"])),
        "plain_loads": loop.count("tt.load"),
        "moves": loop.count("convert_layout"),
    }
    print(json.dumps(result), flush=True)


def all_codes() -> dict[str, Codes]:
    names = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "IQ4_NL", "MXFP4")
    cpu = torch.device("cpu")
    codes = {name: random_codes(name, 16, K, cpu) for name in names}
    return codes | float_matrices(K) | {"INT4": int4_groups(K), "AFFINE5": affine(K)}


def main(capability: int, everything: bool) -> None:
    only_compile(divmod(capability, 10), capability >= 90)
    record()
    if not everything:
        codes = random_codes("Q6_K", 16, K, torch.device("cpu"))
        compile_case("Q6_K", codes, 16, CODED_TILES[16][0], capability)
        return
    for name, codes in all_codes().items():
        for num_rows, tiles in CODED_TILES.items():
            for tile in tiles:
                compile_case(name, codes, num_rows, tile, capability)
    codes = all_codes()["Q4_K"]
    compile_case("Q4_K", codes, 32, CODED_TILES[64][0], capability, torch.float16)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] == ["--all"])
