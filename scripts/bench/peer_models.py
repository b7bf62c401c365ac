"""What a GGUF file costs to compute: bytes of a step, operations of a token, bytes of its cache."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf

HEAD, EMBEDDING = "output.weight", "token_embd.weight"
CACHED = ("attn_k.weight", "attn_v.weight")


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Bytes and operations of one dense model."""

    file_bytes: int
    step_bytes: int
    """Bytes of weights that a step reads: all but the embedding, unless it is the head too."""
    token_operations: int
    """int8 operations of one token through all layers, two for each weight."""
    head_operations: int
    """Operations of the head, which a prompt needs for its last token only."""
    token_cache_bytes: int
    """Bytes of keys and values of one token, in half precision."""


def model_cost(path: Path) -> ModelCost:
    """Read the costs of a file."""
    reader = gguf.GGUFReader(path)
    shapes = {t.name: [int(n) for n in t.shape] for t in reader.tensors}
    sizes = {t.name: int(t.n_bytes) for t in reader.tensors}
    head = HEAD if HEAD in shapes else EMBEDDING
    matrices = [n for n, s in shapes.items() if len(s) > 1 and n not in (HEAD, EMBEDDING)]
    cached = [prod(s[1:]) for n, s in shapes.items() if n.endswith(CACHED)]
    return ModelCost(
        file_bytes=path.stat().st_size,
        step_bytes=sum(sizes[n] for n in matrices) + sizes[head],
        token_operations=2 * sum(prod(shapes[n]) for n in matrices),
        head_operations=2 * prod(shapes[head]),
        token_cache_bytes=2 * sum(cached),
    )
