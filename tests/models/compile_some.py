"""Compiles a few Triton kernels of each kind in one process. `test_some_kernels_compile` runs it.

Prints a JSON list for each kind: its name, and what the program of this kind prints of each kernel.
"""

import json
from contextlib import redirect_stdout
from io import StringIO

from tests.models.backends.quantization import compile_code_kernels, compile_fp8
from tests.models.backends.transformers.attention import compile_kernels
from tests.models.backends.transformers.fused import (
    compile_coded_some_rows,
    compile_experts,
    compile_states,
)
from tests.models.sampling.triton import compile_sampler

CAPABILITY = 90
KINDS = {
    "attention": compile_kernels.compile_some,
    "experts": compile_experts.compile_some,
    "states": compile_states.compile_some,
    "sampler": lambda: compile_sampler.compile_for(CAPABILITY, ["choose_kernel"]),
    "float8": lambda: compile_fp8.compile_for(CAPABILITY, 4096, 8),
    # From here on no launch runs a kernel.
    "codes": lambda: compile_code_kernels.main(CAPABILITY, False),
    "rows of codes": lambda: compile_coded_some_rows.main(CAPABILITY, False),
}

if __name__ == "__main__":
    for name, compile_kind in KINDS.items():
        with redirect_stdout(StringIO()) as printed:
            compile_kind()
        print(json.dumps([name, [json.loads(row) for row in printed.getvalue().splitlines()]]))
