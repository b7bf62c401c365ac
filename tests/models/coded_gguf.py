"""Writes tiny GGUF files with the quantised types of real ones, from random blocks."""

from pathlib import Path

import gguf
import torch

from tests.models.random_codes import random_blocks
from tests.models.tiny_gguf import add_tokenizer

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 256, 2, 4, 2, 64, 512, 320
CPU = torch.device("cpu")


def write_coded_gguf(
    path: Path, first: str = "Q4_K", second: str = "Q6_K", *, tied: bool = False
) -> Path:
    """A random llama model as llama.cpp's Q4_K_M: some layers' values and down projections, and
    the head, are of the type `second`. The embedding is, if it is `tied` to the head."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("coded")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(50000.0)
    writer.add_vocab_size(VOCAB)
    add_tokenizer(writer, VOCAB)
    generator = torch.Generator().manual_seed(1)
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            values = 1 + 0.2 * torch.randn(HIDDEN, generator=generator)
            writer.add_tensor(f"blk.{i}.{name}.weight", values.numpy())
    writer.add_tensor("output_norm.weight", torch.ones(HIDDEN).numpy())
    for seed, (name, n, k, kind) in enumerate(_matrices(first, second, tied)):
        rows = random_blocks(kind, n, k, CPU, seed, size=k**-0.5).numpy()
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _matrices(first: str, second: str, tied: bool) -> list[tuple[str, int, int, str]]:
    query, key = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    matrices = [("token_embd.weight", VOCAB, HIDDEN, second if tied else first)]
    if not tied:
        matrices.append(("output.weight", VOCAB, HIDDEN, second))
    for i in range(LAYERS):
        mixed = second if i == 0 else first
        matrices += [
            (f"blk.{i}.attn_q.weight", query, HIDDEN, first),
            (f"blk.{i}.attn_k.weight", key, HIDDEN, first),
            (f"blk.{i}.attn_v.weight", key, HIDDEN, mixed),
            (f"blk.{i}.attn_output.weight", HIDDEN, query, first),
            (f"blk.{i}.ffn_gate.weight", FFN, HIDDEN, first),
            (f"blk.{i}.ffn_up.weight", FFN, HIDDEN, first),
            (f"blk.{i}.ffn_down.weight", HIDDEN, FFN, mixed),
        ]
    return matrices
