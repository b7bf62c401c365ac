"""The sweep of tile sizes: a dry run, its cases, and its table."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.models.compiled import without_interpreter
from tests.nightly import nightly

pytest.importorskip("triton")

SCRIPTS = Path(__file__).parents[2] / "scripts" / "gpu"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.mark.slow
def test_dry_run(scripts, tmp_path, capsys):
    import sweep

    out = tmp_path / "sweep.jsonl"
    assert sweep.main(["--dry-run", "--out", str(out), "--seconds", "1e6"]) == 0
    printed = capsys.readouterr().out
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["kind"] for r in results] == [
        *("device", "decode", "decode", "prefill", "prefill", "product", "product")
    ]
    assert all(r["rate"] > 0 and "problem" not in r for r in results)
    for line in (
        "| decode D16 G4 2x1 at 40 |",
        "| prefill D16 G4 1x20 at 24 |",
        "0 of them problem",
    ):
        assert line in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sampling", *nightly("experts", "gemv")])
def test_other_scripts_run_dry(name, scripts, tmp_path):
    out = tmp_path / "out.jsonl"
    words = ["--dry-run", "--out", str(out), "--seconds", "1e6"]
    assert import_module(name).main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows
    assert not any("error" in row for row in rows)


def test_variants(scripts):
    """Today's tile comes first, none comes twice, and keys are split only where it helps."""
    from sweep_cases import decode_case, main_cases, more_cases, variants

    from stonechat_models.backends.transformers.attention.tile_sizes import Tiles

    for case in [*main_cases(), *more_cases()]:
        found = variants(case, Tiles())
        assert len(set(found)) == len(found) > 10
        today = Tiles().prefill if case.kind == "prefill" else Tiles().decode
        assert found[0] == today(case.shape)
    assert {t.waves for t in variants(decode_case(64, 4, 1, 4100), Tiles())} == {1, 2, 4}
    assert {t.waves for t in variants(decode_case(64, 4, 64, 4100), Tiles())} == {2}


def test_each_call_reads_blocks_of_its_own(scripts):
    from sweep_cases import decode_case

    case = decode_case(64, 4, 2, 40)
    first, second = case.batches(100, torch.device("cpu"))
    blocks = torch.cat([first.block_table.flatten(), second.block_table.flatten()]).tolist()
    assert first.block_table.shape == (2, 3)
    assert len(set(blocks)) == len(blocks)
    assert max(blocks) < 100


def test_table(scripts, monkeypatch):
    monkeypatch.delitem(sys.modules, "sweep", raising=False)
    import sweep

    case = {"kind": "decode", "head_size": 64, "group": 4, "batch": 1, "queries": 1, "context": 530}
    tile = {"rows": 16, "keys": 64, "num_warps": 4, "num_stages": 3, "waves": 2}
    product = {"kind": "product", "model": "1B", "m": 1, "k": 2048, "n": 3072}
    text = sweep.table(
        [
            {"kind": "device", "name": "a card", "rate": 2e12},
            {**case, "tile": tile, "is_today": True, "us": 12.0, "rate": 1e12},
            {**case, "tile": {**tile, "keys": 32}, "is_today": False, "us": 10.0, "rate": 1.2e12},
            {**case, "tile": {**tile, "keys": 16}, "is_today": False, "us": 1.0, "problem": "off"},
            {**product, "library": "cublas", "us": 9.0, "rate": 1e12},
            {**product, "library": "cublaslt", "us": 8.0, "rate": 1.5e12},
        ]
    )
    assert (
        "| decode D64 G4 1x1 at 530 | 32, 16, 4, 3, 2 | 10.0 | 12.0 | 1.20 | 60% of read |" in text
    )
    assert "| 1B | 1, 2048, 3072 | cublas 9.0, cublaslt 8.0 | 75% of read |" in text
    assert "6 results, 1 of them problems:\noff" in text


@pytest.mark.slow
@pytest.mark.nightly
def test_a_worker_compiles_what_the_device_will_launch(tmp_path):
    """A launch with tensors that have memory finds the kernel in the cache."""
    program = """
import sys
import torch
from compile_ahead import only_compile
from sweep_cases import decode_case
from sweep_run import FixedTiles, call, inputs_of
from stonechat_models.backends.transformers.attention import triton_backend
from stonechat_models.backends.transformers.attention.tile_sizes import TileSizes

only_compile((9, 0))
shape = triton_backend._shape
triton_backend._shape = lambda *arguments: {**shape(*arguments), "UPCAST": False}
case = decode_case(16, 4, 1, 40)
cache = torch.empty(2, 100 * 16 * 8 * 16, dtype=torch.bfloat16, device=sys.argv[1])
call(case, TileSizes(16, 32, 1, 2), 132, inputs_of(case, cache))[0]()
"""
    environment = without_interpreter(tmp_path, SCRIPTS)
    for device in ("meta", "cpu"):
        command = [sys.executable, "-c", program, device]
        subprocess.run(command, env=environment, check=True, timeout=300)
        assert len(list(tmp_path.glob("*/decode_kernel.cubin"))) == 1
