"""Writes tiny GGUF files with random weights, using the writer of the `gguf` package."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCAB = 64, 2, 4, 2, 128, 300
EXPERTS, EXPERTS_USED, EXPERT_FFN = 4, 2, 768
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)

# architecture: head size
HEAD_DIMS = {
    "llama": 16,
    "qwen2": 16,
    "qwen3": 128,
    "qwen3moe": 32,
    "phi3": 16,
    "gemma2": 256,
    "gemma3": 256,
}


def byte_alphabet() -> list[str]:
    """Return the printable characters that stand for the bytes in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in printable]
    return [chr(c) for c in [*printable, *range(256, 256 + len(other))]]


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Return tokens, token types and merges."""
    merges = ["Ġ t", "h e", "i n", "Ġt he", "Ġ Ġ", "1 2", "Ġ 1"]
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    types = [1] * len(tokens) + [3] * len(special) + [4]
    tokens += [*special, "<think>"]
    unused = VOCAB - len(tokens)
    tokens += [f"[UNUSED{i}]" for i in range(unused)]
    return tokens, types + [5] * unused, merges


def write_tiny_gguf(
    path: Path,
    architecture: str,
    weight_type: str = "F32",
    metadata: Mapping[str, float | int | str] | None = None,
    skip: frozenset[str] = frozenset(),
    part_size: int = 0,
    others: Mapping[str, np.ndarray] | None = None,
    rerank_template: str | None = None,
) -> Path:
    """Write a random model. `metadata` goes under `<architecture>.`; `skip` leaves tensors out.

    `part_size`: the file is split into parts `-00001-of-…` of this many tensors; 0: it is not.
    `others`: further tensors. `rerank_template`: a template for pairs beside that for chats.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part_size)
    head_dim = HEAD_DIMS[architecture]
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(50000.0)
    writer.add_vocab_size(VOCAB)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(8)
    if architecture == "qwen3moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(EXPERTS_USED)
        writer.add_expert_feed_forward_length(EXPERT_FFN)
    for key, value in (metadata or {}).items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    add_tokenizer(writer)
    if rerank_template is not None:
        writer.add_chat_template([{"name": "rerank", "template": rerank_template}])
    _add_tensors(writer, architecture, head_dim, gguf.GGMLQuantizationType[weight_type], skip)
    for name, values in (others or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int = VOCAB) -> None:
    """Write a byte-level vocabulary of at least `VOCAB` tokens, padded to `vocab_size`."""
    tokens, types, merges = vocabulary()
    padding = range(len(tokens), vocab_size)
    tokens, types = [*tokens, *(f"[PAD{i}]" for i in padding)], types + [5] * len(padding)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template(TEMPLATE)


def _shapes(architecture: str, head_dim: int) -> dict[str, tuple[int, ...]]:
    query, key = HEADS * head_dim, KV_HEADS * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (HIDDEN,),
        "ffn_norm.weight": (HIDDEN,),
        "attn_output.weight": (HIDDEN, query),
    }
    if architecture == "phi3":
        shapes["attn_qkv.weight"] = (query + 2 * key, HIDDEN)
    else:
        shapes |= {"attn_q.weight": (query, HIDDEN), "attn_k.weight": (key, HIDDEN)}
        shapes |= {"attn_v.weight": (key, HIDDEN)}
    if architecture == "qwen2":
        shapes |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,)}
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        shapes |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
    if architecture.startswith("gemma"):
        shapes |= {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}
    if architecture == "qwen3moe":
        shapes["ffn_gate_inp.weight"] = (EXPERTS, HIDDEN)
        shapes["ffn_gate_exps.weight"] = (EXPERTS, EXPERT_FFN, HIDDEN)
        shapes["ffn_up_exps.weight"] = (EXPERTS, EXPERT_FFN, HIDDEN)
        shapes["ffn_down_exps.weight"] = (EXPERTS, HIDDEN, EXPERT_FFN)
        return shapes
    shapes["ffn_down.weight"] = (HIDDEN, FFN)
    shapes["ffn_up.weight"] = (FFN * 2 if architecture == "phi3" else FFN, HIDDEN)
    if architecture != "phi3":
        shapes["ffn_gate.weight"] = (FFN, HIDDEN)
    return shapes


def _add_tensors(
    writer: gguf.GGUFWriter,
    architecture: str,
    head_dim: int,
    weight_type: gguf.GGMLQuantizationType,
    skip: frozenset[str],
) -> None:
    rng = np.random.default_rng(0)
    layer = _shapes(architecture, head_dim)
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not architecture.startswith("gemma"):
        shapes["output.weight"] = (VOCAB, HIDDEN)
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        values = rng.normal(scale=0.2, size=shape).astype(np.float32)
        if "norm" in name:
            values = 1 + values
        if name in skip:
            continue
        kind = weight_type if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
