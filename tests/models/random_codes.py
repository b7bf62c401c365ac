"""Random quantised layers, made on their device: to time and to test kernels without a file."""

from typing import Any

import torch
from torch import nn

from stonechat_models.backends.quantization.codes.coded_linear import CodedEmbedding, CodedLinear
from stonechat_models.backends.quantization.codes.codes import FLOAT8_NAN, Codes
from stonechat_models.backends.quantization.codes.float_codes import float8_codes
from stonechat_models.backends.quantization.codes.gguf_codes import BLOCK_BYTES, gguf_codes
from stonechat_models.backends.quantization.scratch import Scratch

BLOCK_SIZES = {name: 256 if name.endswith("_K") else 32 for name in BLOCK_BYTES}
SCALES = {
    "Q4_0": 0.2,
    "Q5_0": 0.1,
    "Q8_0": 0.013,
    "IQ4_NL": 0.015,
    "Q4_K": 0.0037,
    "Q5_K": 0.0018,
    "Q6_K": 0.0007,
}
"""Scales of blocks that give random codes a standard deviation of about 1."""


FLOAT8_BLOCK = 128
FLOAT8_SIZE = 104.0
"""The root mean square of random codes of float8, times their scales."""


def random_blocks(
    type_name: str, n: int, k: int, device: torch.device, seed: int = 0, size: float = 1.0
) -> torch.Tensor:
    """Rows of a GGUF type, uint8[n, bytes of a row], for weights of about this size."""
    generator = torch.Generator(device).manual_seed(seed)
    num_bytes = BLOCK_BYTES[type_name]
    shape = (n * k // BLOCK_SIZES[type_name], num_bytes)
    blocks = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator)
    if type_name == "MXFP4":
        blocks[:, 0] = 126 + int(torch.tensor(size).log2().round())
        return blocks.view(n, -1)
    scale = SCALES[type_name]
    start = num_bytes - 2 if type_name == "Q6_K" else 0
    scales = torch.rand(len(blocks), 1, device=device, generator=generator) + 0.5
    blocks[:, start : start + 2] = (scales * scale * size).half().view(torch.uint8)
    if type_name in ("Q4_K", "Q5_K"):
        factor = 7.5 if type_name == "Q4_K" else 15.5
        blocks[:, 2:4] = (scales * scale * size * factor).half().view(torch.uint8)
    return blocks.view(n, -1)


def random_codes(
    type_name: str, n: int, k: int, device: torch.device, seed: int = 0, size: float = 1.0
) -> Codes:
    """A random matrix [n, k] whose numbers are of about this size. `FP8` has blocks of 128."""
    if type_name == "FP8":
        return _random_float8(n, k, device, seed, size)
    return gguf_codes(type_name, random_blocks(type_name, n, k, device, seed, size))


def _random_float8(n: int, k: int, device: torch.device, seed: int, size: float) -> Codes:
    generator = torch.Generator(device).manual_seed(seed)
    bits = torch.randint(FLOAT8_NAN, (n, k), dtype=torch.uint8, device=device, generator=generator)
    bits |= torch.randint(2, (n, k), dtype=torch.uint8, device=device, generator=generator) << 7
    scales = torch.rand(n, k // FLOAT8_BLOCK, device=device, generator=generator) + 0.5
    codes = float8_codes(bits, scales * (size / FLOAT8_SIZE), FLOAT8_BLOCK)
    assert codes is not None
    return codes


def random_coded_linear(
    n: int,
    k: int,
    type_name: str,
    scratch: Scratch,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
) -> CodedLinear:
    """A linear layer without a bias, whose outputs are as large as its inputs."""
    codes = random_codes(type_name, n, k, device, seed, size=k**-0.5)
    return CodedLinear([codes], None, scratch, dtype)


def put_random_codes(
    module: nn.Module, device: torch.device, dtype: torch.dtype, second: str = "Q6_K"
) -> None:
    """Replace all linear layers and the embedding of a model, as a file of type Q4_K_M has them.

    `module` may be on the meta device. The head, and half of the layers of values and down
    projections, are of the type `second`; the others are Q4_K. Sizes are multiples of 256.
    """
    scratch = Scratch(device, dtype)
    head = module.get_output_embeddings()  # type: ignore[operator]
    num_layers = int(module.config.get_text_config().num_hidden_layers)  # type: ignore[operator, union-attr]
    names = [name for name, part in module.named_modules() if type(part) is nn.Linear]
    for seed, name in enumerate(names):
        part: Any = module.get_submodule(name)
        layer = next((int(s) for s in name.split(".") if s.isdigit()), 0)
        is_first = layer < num_layers // 8 or layer >= num_layers * 7 // 8 or layer % 3 == 2
        is_second = name.endswith(("v_proj", "down_proj")) and is_first
        type_name = second if part is head or is_second else "Q4_K"
        n, k = part.weight.shape
        linear = random_coded_linear(n, k, type_name, scratch, dtype, device, seed)
        module.set_submodule(name, linear)
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    n, k = embedding.weight.shape
    codes = random_codes("Q4_K", n, k, device, seed=len(names))
    module.set_input_embeddings(CodedEmbedding(codes, dtype))  # type: ignore[operator]


def put_random_float8(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Replace all linear layers but the head, as folders of FP8 have them. Else like the above."""
    scratch = Scratch(device, dtype)
    head = module.get_output_embeddings()  # type: ignore[operator]
    linears = [n for n, part in module.named_modules() if type(part) is nn.Linear]
    for seed, name in enumerate(linears):
        part: Any = module.get_submodule(name)
        if part is not head:
            n, k = part.weight.shape
            linear = random_coded_linear(n, k, "FP8", scratch, dtype, device, seed)
            module.set_submodule(name, linear)
