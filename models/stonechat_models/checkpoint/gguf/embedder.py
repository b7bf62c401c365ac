"""Says how the model of a GGUF file makes embeddings: in the files of sentence-transformers.

The file names the pooling; without a name an encoder has the mean. Embeddings are scaled to length
1, as llama.cpp and Ollama do with every model.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from stonechat_models.checkpoint.gguf.config import architecture_of
from stonechat_models.checkpoint.gguf.metadata import pooling, ranks
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.weights import dequantize
from stonechat_models.checkpoint.sentence_transformers import MODULES_FILE, PACKAGE, POOLINGS

DEFAULT_POOLING = "mean"
NO_POOLING = (
    "the file does not name its pooling: an embedding is the mean of the last hidden states"
)


def embeds(gguf: GgufFile) -> bool:
    """Whether the model makes embeddings alone, of all its hidden states.

    A decoder that pools the last token is none of these. The engine computes that.
    """
    if ranks(gguf):
        return False
    return architecture_of(gguf).is_encoder or pooling(gguf) in ("mean", "cls")


def embeds_last(gguf: GgufFile) -> bool:
    """Whether the model is a decoder whose embeddings are the hidden states of last tokens."""
    return pooling(gguf) == "lasttoken" and not architecture_of(gguf).is_encoder


def write_embedder_files(gguf: GgufFile, folder: Path) -> None:
    """Write into `folder` how the model makes embeddings, if it makes them of all hidden states."""
    if not embeds(gguf):
        return
    dense = [name for name in architecture_of(gguf).dense if name in gguf.tensors]
    kinds = ["Transformer", "Pooling", *("Dense" for _ in dense), "Normalize"]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"path": path, "type": f"{PACKAGE}models.{kind}"}
        for path, kind in zip(paths, kinds, strict=True)
    ]
    (folder / MODULES_FILE).write_text(json.dumps(modules, indent=2))
    chosen = pooling(gguf) or DEFAULT_POOLING
    modes = {key: name == chosen for name, key in POOLINGS.items()}
    _write_config(folder / paths[1], modes)
    for path, name in zip(paths[2:], dense, strict=False):
        _write_dense(gguf, name, folder / path)


def _write_dense(gguf: GgufFile, name: str, folder: Path) -> None:
    from safetensors.numpy import save_file

    weight = dequantize(gguf.tensors[name])
    num_out, num_in = weight.shape
    config = {
        "in_features": num_in,
        "out_features": num_out,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write_config(folder, config)
    save_file({"linear.weight": weight}, folder / "model.safetensors")


def _write_config(folder: Path, content: Mapping[str, object]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content, indent=2))
