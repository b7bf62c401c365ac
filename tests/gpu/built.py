"""Builds the engine of a model's files on a CUDA device, as a server builds it."""

from pathlib import Path
from typing import Any

from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from stonechat_models.runtime.build import build_engine


def build(path: Path, **settings: Any) -> tuple[Engine, str]:
    """Return a small engine and the text of the progress lines."""
    lines: list[str] = []
    sizes = {"max_num_seqs": 3, "max_batch_tokens": 32, "max_model_len": 64}
    config = EngineConfig(
        model=str(path), device="cuda", **{**sizes, "kv_cache_bytes": 4 << 20, **settings}
    )
    engine, _ = build_engine(config, lines.append)
    assert isinstance(engine, Engine)
    return engine, "\n".join(lines)
