"""`serve` and `plan` say in a sentence why a damaged model is not served."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stonechat_server.cli import main

COMMAND = [sys.executable, "-m", "stonechat_server.cli"]
ROOT = Path(__file__).parents[3]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "architectures": ["LlamaForCausalLM"],
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "partial_rotary_factor": 4.0}))
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_plan(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(damaged), "--device", "cpu"]) == 1
    assert "config.json: partial_rotary_factor is 4.0" in capsys.readouterr().err
    (damaged / "config.json").write_text("[" * 100_000)
    assert main(["plan", str(damaged), "--device", "cpu"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("stonechat plan: cannot read ")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_serve(damaged: Path) -> None:
    """What the engine's process says reaches the user."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("server", "models"))
    result = subprocess.run(
        [*COMMAND, "serve", str(damaged), "--port", "0", "--device", "cpu", "--engine-process"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("stonechat serve: ")
    assert "config.json: partial_rotary_factor is 4.0" in last
