"""The sweep of products with codes: a dry run, and the order of its cases."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
SCRIPTS = Path(__file__).parents[2] / "scripts/gpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="it needs the interpreter")
def test_a_dry_run(tmp_path, monkeypatch):
    from stonechat_models.backends.quantization.codes import code_products

    for name in ("MAX_ROWS", "rows_tile"):  # the script changes them
        monkeypatch.setattr(code_products, name, getattr(code_products, name))
    out = tmp_path / "codes.jsonl"
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", ["codes.py", "--dry-run", "--out", str(out)])
    importlib.import_module("codes").main()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["tile"] for line in lines] == [[16, 1, 1], [32, 128, 4, 2, 1], "dequantised"]
    assert all(0 < line["error"] < 0.02 for line in lines)
