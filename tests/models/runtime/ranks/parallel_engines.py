"""Engines whose model several ranks share: rank 0 is the test's own process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stonechat_models.checkpoint.hf_config import read_config
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from stonechat_models.errors import EngineError
from stonechat_models.runtime.ranks.parallel_model import ParallelModel, load_parallel_model
from stonechat_models.sampling.sampler import Sampler
from tests.models.engines import CPU, model_info
from tests.models.tiny_models import tiny_model

VOCAB_SIZE = 212


@contextmanager
def parallel_model(
    folder: Path, num_ranks: int
) -> Iterator[tuple[ParallelModel, list[EngineError]]]:
    """Load the model of `folder` on this rank and on others, which end with the block.

    Yields it, and the reasons for which it gave up.
    """
    reasons: list[EngineError] = []
    environment = dict(os.environ)
    config = EngineConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        backend="transformers",
        threads=1,
        tensor_parallel=num_ranks,
    )
    weights = tuple(folder.glob("*.safetensors"))
    files = ModelFiles("tiny", folder, read_config(folder / "config.json"), None, weights)
    model = None
    try:
        model = load_parallel_model(files, config, CPU, lambda line: None, reasons.append)
        yield model, reasons
    finally:
        for child in model._followers._children if model is not None else ():
            child.end(0.0)
        if dist.is_initialized():
            dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(1)


def parallel_engine(
    model: ParallelModel, *, num_blocks: int = 128, prefix_caching: bool = True, **limits: int
) -> Engine:
    """Return an engine of the loaded model, with a new KV cache, and limits as in `make_engine`."""
    known = model.info
    info = model_info(
        vocab_size=known.vocab_size, kv_bytes_per_token=known.kv_bytes_per_token, **limits
    )
    model.info = info
    model.allocate_kv_cache(num_blocks, info.block_size)
    return Engine(
        model,
        Sampler(info.vocab_size, CPU),
        eos_token_ids=frozenset(),
        device=CPU,
        prefix_caching=prefix_caching,
    )


def save_split_model(folder: Path, family: str, **changes: Any) -> torch.nn.Module:
    """Save a tiny model whose weights can be split in four, and return it. It has no tokenizer."""
    module = tiny_model(family, **{"vocab_size": VOCAB_SIZE, "num_key_value_heads": 4, **changes})
    module.save_pretrained(folder)  # type: ignore[operator]
    (folder / "tokenizer.json").write_text("{}")
    return module
