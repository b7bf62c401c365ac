"""Weights that stay as a GGUF file stores them, on a CUDA device."""

from functools import partial
from pathlib import Path

import gguf
import pytest
import torch

from stonechat_models.backends.quantization.codes.code_products import dequantise_into
from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear, merged_coded
from stonechat_models.backends.quantization.codes.gguf_codes import GGUF_TYPES, gguf_codes
from stonechat_models.backends.quantization.scratch import Scratch
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.memory import CudaCapturer
from stonechat_models.backends.transformers.fused.coded_choice import (
    CODED_TILES,
    choose_coded_products,
    coded_groups,
)
from stonechat_models.backends.transformers.fused.row_products.coded_some_rows import (
    CodedRows,
    with_wide_scales,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import SomeRows
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from tests.gpu.built import build
from tests.models.coded_gguf import write_coded_gguf
from tests.models.dequantised import dequantised
from tests.models.engines import deviations, generate_all, greedy
from tests.models.packed_writers import CASES, is_linear_or_expert, save_packed, stack_experts
from tests.models.random_codes import (
    random_blocks,
    random_coded_linear,
    random_codes,
)

N, K = 4096, 14336
TYPES = ["Q4_K", "Q6_K", "Q8_0", *sorted(GGUF_TYPES - {"Q4_K", "Q6_K", "Q8_0"})]
CHECKED = 64


def rows_of(blocks: torch.Tensor, type_name: str, index: torch.Tensor) -> torch.Tensor:
    """Some rows of a weight, float64 on the CPU, as the `gguf` package dequantises them."""
    chosen = blocks[index.to(blocks.device)].cpu().numpy()
    return torch.from_numpy(gguf.dequantize(chosen, gguf.GGMLQuantizationType[type_name])).double()


@pytest.mark.parametrize("type_name", TYPES)
@torch.inference_mode()
def test_products_are_right(type_name, device):
    blocks = random_blocks(type_name, N, K, device, size=K**-0.5)
    codes = gguf_codes(type_name, blocks)
    index = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:CHECKED]
    weight = rows_of(blocks, type_name, index)
    values = torch.empty(CHECKED, K, device=device)
    dequantise_into(values, codes, index=index.to(device))
    assert float((values.cpu().double() - weight).abs().max()) < 1e-6 * float(weight.abs().max())
    layer = CodedLinear([codes], None, Scratch(device, torch.bfloat16), torch.bfloat16)
    for size in (1, 2, 3, 4, 5, 64, 130):
        x = torch.randn(size, K, generator=torch.Generator().manual_seed(size)).bfloat16()
        actual = layer(x.to(device)).cpu()[:, index].double()
        expected = x.double() @ weight.T
        error = float((actual - expected).norm() / expected.norm())
        # About 3.4e-3 for a few rows, which are rounded to integers, and 3.7e-3 for more.
        assert error < (5e-3 if size <= 4 else 6e-3), (size, error)


@pytest.mark.parametrize("type_name", [*TYPES, "FP8"])
@torch.inference_mode()
def test_products_of_some_rows_are_right(type_name, device):
    """Those of all tiles that a start tries, for more inputs than one program multiplies."""
    codes = random_codes(type_name, 256, 1024, device, size=1 / 32)
    weight = dequantised(codes).cpu().double()
    for timed, tiles in CODED_TILES.items():
        for tile in tiles:
            way = CodedRows(SomeRows.on(device, tile))
            for num_rows in (timed // 2 + 1, timed):
                x = torch.randn(num_rows, 1024, generator=torch.Generator().manual_seed(0))
                x = x.bfloat16()
                output = torch.empty(num_rows, 256, dtype=torch.bfloat16, device=device)
                way(output, x.to(device), with_wide_scales(codes), None)
                expected = x.double() @ weight.T
                error = float((output.cpu().double() - expected).norm() / expected.norm())
                assert error < 7e-3, (tile, num_rows, error)


@torch.inference_mode()
def test_ways_for_some_rows_are_timed_and_run_in_a_graph(device):
    scratch = Scratch(device, torch.bfloat16)
    layers = torch.nn.ModuleList(
        random_coded_linear(128, 256, name, scratch, torch.bfloat16, device)
        for name in ("Q4_K", "Q6_K", "FP8")
    )
    lines = []
    timings = choose_coded_products(layers, lines.append)
    assert len(timings) == len(layers) * len(CODED_TILES), lines
    for timing in timings:
        print(timing)
        assert timing.tile is not None
    for group in coded_groups(layers):
        group.use(dict.fromkeys(range(5, 65), CodedRows(SomeRows.on(device, CODED_TILES[64][0]))))
        layer = group.layers[0]
        x = torch.randn(40, 256, device=device).bfloat16()
        replay = CudaCapturer(device).capture(partial(layer, x))
        for seed in range(2):
            torch.manual_seed(seed)
            x.copy_(torch.randn_like(x))
            expected = x.double() @ dequantised(layer).double().T
            assert float((replay() - expected).norm() / expected.norm()) < 7e-3


@torch.inference_mode()
def test_products_run_in_a_graph(device):
    parts = [random_codes(name, 512, 1024, device, size=1 / 32) for name in ("Q4_K", "Q6_K")]
    layer = CodedLinear(parts, None, Scratch(device, torch.bfloat16), torch.bfloat16)
    for size in (1, 4, 5, 130):
        x = torch.randn(size, 1024, device=device).bfloat16()
        replay = CudaCapturer(device).capture(partial(layer, x))
        for seed in range(2):
            torch.manual_seed(seed)
            x.copy_(torch.randn_like(x))
            expected = x.double() @ dequantised(layer).double().T
            assert float((replay() - expected).norm() / expected.norm()) < 6e-3


@torch.inference_mode()
def test_a_merged_layer_gives_the_outputs_of_its_parts(device):
    scratch = Scratch(device, torch.bfloat16)
    layers = [
        CodedLinear([random_codes(name, n, 1024, device, i)], None, scratch, torch.bfloat16)
        for i, (name, n) in enumerate((("Q4_K", 512), ("Q4_K", 128), ("Q6_K", 128)))
    ]
    merged = merged_coded(layers)
    assert merged is not None
    assert len(merged.parts) == 2
    for size in (1, 16):
        x = torch.randn(size, 1024, device=device).bfloat16()
        expected = torch.cat([layer(x) for layer in layers], dim=1).double()
        error = float((merged(x).double() - expected).norm() / expected.norm())
        assert error < (1e-6 if size == 1 else 1e-2), (size, error)


@pytest.mark.alone
@pytest.mark.parametrize("type_name", ["Q4_K", "Q6_K", "Q8_0"])
def test_memory_is_that_of_the_file(type_name, device):
    blocks = random_blocks(type_name, N, K, device)
    gguf_codes(type_name, blocks)  # what a first call allocates for good is not counted
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    codes = gguf_codes(type_name, blocks)
    held = torch.cuda.memory_allocated(device) - before
    assert codes.num_bytes <= held <= 1.03 * blocks.nbytes


@pytest.mark.parametrize("kinds", [("Q4_K", "Q6_K"), ("Q8_0", "Q5_0")])
def test_a_file_is_served_as_it_is(kinds, device, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_coded_gguf(tmp_path / "coded.gguf", *kinds)
    engine, lines = build(path, max_num_seqs=2)
    info = engine.model.info
    assert info.quantization == f"as stored ({', '.join(sorted(kinds))})", lines
    assert isinstance(engine.model, GraphedModel), lines
    fused = [line for line in lines.splitlines() if "2 FusedDecoderLayer" in line]
    assert any("2 MergedMLP" in line for line in fused), lines
    tensors = path.stat().st_size
    assert info.weight_bytes < 1.05 * tensors
    assert_near_plain(engine, path)


FOLDERS = [("llama", name) for name in ("fp8-block", "fp8-channel", "mxfp8", "nvfp4", "mxfp4")]
FOLDERS += [("llama", "gptq-order"), ("qwen3_moe", "fp8-block"), ("qwen3_moe", "nvfp4")]
FOLDERS += [("llama-tied", "mlx-4"), ("qwen3_moe", "mlx-8")]


@pytest.mark.parametrize(("family", "name"), FOLDERS)
def test_a_folder_is_served_as_it_is(family, name, device, tmp_path):
    writer, quantization, _ = CASES[name]
    has_embeddings = name.startswith("mlx")

    def is_packed(weight: str) -> bool:
        return is_linear_or_expert(weight) or (has_embeddings and "embed_tokens" in weight)

    save_packed(tmp_path, family, writer, quantization, is_packed, vocab_size=320)
    if has_embeddings:
        stack_experts(tmp_path)
    engine, lines = build(tmp_path, max_num_seqs=2)
    assert engine.model.info.quantization.startswith("as stored ("), lines
    assert isinstance(engine.model, GraphedModel), lines
    assert_near_plain(engine, tmp_path)


def assert_near_plain(engine: Engine, path: Path) -> None:
    """Compare answers with those of the file's floats, in float32 on the CPU."""
    config = EngineConfig(model=str(path))
    files = resolve_model(config, lambda _: None)
    reference = load_module(files, config, torch.device("cpu"), torch.float32)
    prompts = [[5, 6, 7], list(range(40, 60))]
    for prompt, result in zip(
        prompts, generate_all(engine, prompts, greedy(4, ignore_eos=True)), strict=True
    ):
        assert max(deviations(reference, prompt, result)) < 0.3
