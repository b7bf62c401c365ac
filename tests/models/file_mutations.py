"""Damages small model files in many ways, each chosen by a seed."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stonechat_models.checkpoint.gguf.reader import TENSOR_TYPES, GgufFile, read_gguf

NUMBERS: Sequence[Any] = (
    *(0, 1, -1, 3, 31, 33, 255, 4096, 2**16, 10**6, 16777216, 2**31 - 1, 2**31, 2**32 - 1, 2**33),
    *(4 * 10**9, 2**40, 2**62, 0.0, 0.5, -2.5, 4.0, 1e-30, 1e38, 1e300),
    *(float("nan"), float("inf")),
)
VALUES: Sequence[Any] = (
    *NUMBERS,
    *("", "x", "llama3", "linear", "é" * 40, True, False, [], [0], [[[[[[1]]]]]], [1, "x"], ["x"]),
)
JSON_VALUES: Sequence[Any] = (*VALUES, None, {}, {"a": 1}, {"rope_type": "llama3"}, 10**30)

Tensor = tuple[str, Sequence[int], int, bytes]
"""A tensor's name, shape (rows first), type and data in a GGUF file."""


def pack_value(value: Any) -> bytes:
    """A GGUF metadata value after its type. Bytes are such a value already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        kind, code = (10, "Q") if value >= 0 else (11, "q")
        return struct.pack(f"<I{code}", kind, value)
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + pack_string(value)
    items = [pack_value(item) for item in value] or [pack_value(0)]
    if len({item[:4] for item in items}) > 1:
        items = [pack_value(str(item)) for item in value]
    body = b"".join(item[4:] for item in items[: len(value)])
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(value)) + body


def pack_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pack_gguf(metadata: dict[str, Any], tensors: Sequence[Tensor]) -> bytes:
    """A GGUF file."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(pack_string(key) + pack_value(value) for key, value in metadata.items())
    data = b""
    for name, shape, type_id, content in tensors:
        header += pack_string(name) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        header += struct.pack("<IQ", type_id, len(data))
        data += content + bytes(-len(content) % 32)
    return header + bytes(-len(header) % 32) + data


def unpack_gguf(file: GgufFile) -> tuple[dict[str, Any], list[Tensor]]:
    """What `pack_gguf` packs."""
    ids = {name: i for i, (name, *_) in TENSOR_TYPES.items()}
    tensors = [(t.name, t.shape, ids[t.type_name], t.data.tobytes()) for t in file.tensors.values()]
    return dict(file.metadata), tensors


def mutate_gguf(path: Path, rng: random.Random) -> str:
    """Damage a GGUF file in place. Return what was done."""
    metadata, tensors = unpack_gguf(read_gguf(path))
    choice = rng.randrange(6)
    if choice < 2:
        key = rng.choice([k for k in metadata if not k.startswith("general.name")])
        value = rng.choice(VALUES)
        if isinstance(metadata[key], list) and rng.random() < 0.7 and metadata[key]:
            items = list(metadata[key])
            items[rng.randrange(len(items))] = rng.choice(VALUES)
            value = items
        metadata[key] = value
        done = f"{key} = {value!r}"[:200]
    elif choice == 2:
        done = f"without {(key := rng.choice([*metadata]))}"
        del metadata[key]
    elif choice == 3:
        i = rng.randrange(len(tensors))
        name, shape, type_id, data = tensors[i]
        changed = [*shape]
        changed[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 32, 63, 96, 2**33, 2**63))
        shapes: list[Sequence[int]] = [[], shape[:-1], [1, *shape], changed, changed[::-1]]
        new = rng.choice(shapes)
        new_type = rng.choice((0, 1, 8, 2, 12, 24, 28, 30, 99)) if rng.random() < 0.4 else type_id
        tensors[i] = (name, new, new_type, data)
        done = f"{name} {new} of type {new_type}"
    elif choice == 4:
        i = rng.randrange(len(tensors))
        name = tensors[i][0]
        done = f"without {name}"
        if rng.random() < 0.5:
            other = rng.choice(("attn_q_norm", "attn_q", "ffn_up", "ffn_gate_exps", "rope_freqs"))
            layer, kind = rng.choice((0, 1, 2, 10**9)), rng.choice(("weight", "bias"))
            new_name = f"blk.{layer}.{other}.{kind}"
            tensors.append((new_name, *tensors[i][1:]))
            done = f"{new_name} like {name}"
        else:
            del tensors[i]
    else:
        return mutate_bytes(path, rng, read_gguf(path).data_start)
    path.write_bytes(pack_gguf(metadata, tensors))
    return done


def mutate_bytes(path: Path, rng: random.Random, header: int) -> str:
    """Overwrite some bytes of the header, or cut the file."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.2:
        size = rng.randrange(len(content))
        path.write_bytes(content[:size])
        return f"cut to {size} bytes"
    places = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(max(1, header - 8))
        number = rng.choice((0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**62, 2**64 - 1))
        size = rng.choice((1, 1, 4, 8))
        content[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
        places.append((place, size, number))
    path.write_bytes(content)
    return f"bytes at {places}"


def mutate_tree(tree: Any, rng: random.Random, depth: int = 0) -> str:
    """Change one value in a tree of JSON, remove it or double it. Return what was done."""
    keys = [*tree] if isinstance(tree, dict) else [*range(len(tree))]
    if not keys:
        return "nothing"
    key = rng.choice(keys)
    child = tree[key]
    if isinstance(child, dict | list) and child and rng.random() < 0.8:
        return f"{key}: {mutate_tree(child, rng, depth + 1)}"
    if rng.random() < 0.15:
        del tree[key]
        return f"without {key}"
    if isinstance(child, int | float) and not isinstance(child, bool) and rng.random() < 0.6:
        tree[key] = rng.choice(NUMBERS)
    else:
        tree[key] = rng.choice(JSON_VALUES)
    return f"{key} = {tree[key]!r}"[:200]


def mutate_json(path: Path, rng: random.Random) -> str:
    """Damage a JSON file in place. Return what was done."""
    if rng.random() < 0.15:
        return mutate_bytes(path, rng, path.stat().st_size)
    if rng.random() < 0.03:
        path.write_text("[" * 5000)
        return "deep"
    tree = json.loads(path.read_text())
    done = mutate_tree(tree, rng)
    path.write_text(json.dumps(tree))
    return done


def mutate_safetensors(path: Path, rng: random.Random) -> str:
    """Damage the header of a safetensors file in place. Return what was done."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    if rng.random() < 0.25:
        return mutate_bytes(path, rng, 8 + size)
    tree = json.loads(content[8 : 8 + size])
    name = rng.choice([*tree])
    if rng.random() < 0.3:
        other = rng.choice(("self_attn.q_norm.weight", "self_attn.q_proj.bias", "mlp.up_proj.bias"))
        if rng.random() < 0.5:
            new_name = f"model.layers.{rng.choice((0, 1, 7))}.{other}"
            done = f"{name} is {new_name}"
            tree[new_name] = tree.pop(name)
        else:
            other = rng.choice([*tree])
            tree[name], tree[other] = tree[other], tree[name]
            done = f"{name} and {other} exchanged"
    else:
        done = f"{name}: " + mutate_tree(tree[name], rng)
    header = json.dumps(tree).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    return done


MUTATIONS: dict[str, Callable[[Path, random.Random], str]] = {
    ".gguf": mutate_gguf,
    ".json": mutate_json,
    ".safetensors": mutate_safetensors,
}
