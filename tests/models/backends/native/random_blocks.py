"""Random rows of the block types of GGUF files, which the `gguf` package cannot all write."""

import gguf
import numpy as np

GROUP_TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4")
SUPERBLOCK_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
BLOCK_TYPES = GROUP_TYPES + SUPERBLOCK_TYPES
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
HALVES |= {"Q4_K": (0, 2), "Q5_K": (0, 2), "MXFP4": ()}
"""Where the half-precision numbers of a block begin; at byte 0 in other types."""


def block_size(type_name: str) -> tuple[int, int]:
    """Return the weights and the bytes of a block."""
    block, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    return int(block), int(num_bytes)


def random_blocks(type_name: str, n: int, k: int, seed: int = 0, scale: float = 0.02) -> np.ndarray:
    """Rows of random bits, uint8[n, bytes], whose scales and minima lie between +-`scale`."""
    generator = np.random.default_rng(seed)
    block, num_bytes = block_size(type_name)
    blocks = generator.integers(0, 256, (n, k // block, num_bytes), dtype=np.uint8)
    for at in HALVES.get(type_name, (0,)):
        halves = generator.uniform(-scale, scale, (n, k // block, 1)).astype(np.float16)
        blocks[..., at : at + 2] = halves.view(np.uint8)
    if type_name == "MXFP4":
        blocks[..., 0] = generator.integers(110, 125, blocks.shape[:2])
    return blocks.reshape(n, -1)
