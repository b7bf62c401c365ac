"""Torch for CPUs comes without Triton, so nothing that runs on a CPU may need it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.models.tiny_models import tiny_model
from tests.models.tiny_tokenizers import byte_level_backend

PROGRAM = """
import sys
sys.modules["triton"] = None
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import survey_model
from stonechat_models.runtime.build import build_engine

config = EngineConfig(
    model=sys.argv[1], device="cpu", threads=1, kv_cache_bytes=1 << 20, backend="transformers"
)
survey_model(config, lambda line: None)
build_engine(config, lambda line: None)
"""


def test_a_model_is_planned_and_loaded(tmp_path: Path) -> None:
    vocab_size = byte_level_backend().get_vocab_size()
    tiny_model("qwen3_moe", vocab_size=vocab_size).save_pretrained(tmp_path)  # type: ignore[operator]
    byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
