"""Products of few rows, early launches and rotary tables on a CUDA device."""

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.memory import CudaCapturer
from stonechat_models.backends.transformers.fused.linears import use_ways, way_of
from stonechat_models.backends.transformers.fused.product_choice import (
    SOME_TILES,
    TILES,
    TIMED_COUNTS,
    choose_products,
)
from stonechat_models.backends.transformers.fused.products import normed_product
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.fused.rotary_table import RotaryTable, tabulate_rotary
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    ROW_COUNTS,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    ROW_COUNTS as SOME_ROW_COUNTS,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    SomeRows,
    some_rows_product,
)
from stonechat_models.backends.transformers.fused.step_products import product_groups
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.backends.transformers.verify import TOLERANCE
from stonechat_models.config import EngineConfig
from stonechat_models.hardware.dependent_launch import (
    VARIABLE,
    launch_settings,
    launches_early,
)
from stonechat_models.runtime.assemble import assemble_engine
from tests.gpu.test_cuda_engine import assert_near, prompts, tiny_pair
from tests.models.backends.transformers.fused.row_products import test_some_rows
from tests.models.backends.transformers.fused.row_products.test_few_rows import check, layer
from tests.models.backends.transformers.fused.test_rotary_table import DYNAMIC, LONGROPE
from tests.models.engines import generate_all, greedy, model_info

MAX_MODEL_LEN = 200


def use_everywhere(module, device, tile):
    """Let all products of a fused module use our kernels. Returns how many there are."""
    how = SomeRows.on(device, SOME_TILES[1])
    linears = [product.linear for group in product_groups(module) for product in group]
    for linear in linears:
        ways = dict.fromkeys(ROW_COUNTS, tile) | dict.fromkeys(SOME_ROW_COUNTS, how)
        use_ways(linear, ways)
    return len(linears)


def build(module, device, dtype, lines, tile=TILES[0]):
    """Build an engine whose decode steps have our products and rotary tables."""
    probe = check_packing(module, device, module.config.vocab_size)
    fuse_modules(module)
    assert tabulate_rotary(module, MAX_MODEL_LEN) == 1
    assert use_everywhere(module, device, tile)
    backend = choose_attention("triton", device)
    info = model_info(device=str(device), dtype=str(dtype).removeprefix("torch."))
    config = EngineConfig(model="tiny", max_num_seqs=8, max_batch_tokens=64, kv_cache_bytes=8 << 20)
    return assemble_engine(
        TransformersModel(module, info, backend, probe=probe),
        config,
        device,
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=frozenset(),
        progress=lines.append,
    )


@pytest.mark.parametrize("num_rows", [1, 2, 4])
@pytest.mark.parametrize(
    ("num_out", "num_in"), [(2048, 2048), (4096, 14336), (3072, 2048), (1001, 4100)]
)
def test_products_of_real_sizes(num_out, num_in, num_rows):
    linear = layer(num_out, num_in, dtype=torch.bfloat16)
    tile = TILES[-1 - num_rows % len(TILES)]
    check(num_rows, linear, tile, has_norm=True, dtype=torch.bfloat16)
    check(num_rows, linear, tile, adds=True, dtype=torch.bfloat16)
    if num_out % 2 == 0:
        check(num_rows, linear, tile, has_norm=True, gated="silu", dtype=torch.bfloat16)


@pytest.mark.parametrize("tile", SOME_TILES, ids=range(len(SOME_TILES)))
@pytest.mark.parametrize(
    ("num_out", "num_in"), [(2048, 2048), (4096, 14336), (3072, 2048), (1002, 4100)]
)
def test_products_of_some_rows_of_real_sizes(num_out, num_in, tile, device):
    """Often enough that programs which end at the same time would be seen."""
    how = SomeRows.on(device, tile)
    linear = layer(num_out, num_in, dtype=torch.bfloat16)
    for num_rows in (7, 16, 64):
        for settings in ({"adds": True}, {"gated": "silu"}):
            test_some_rows.check(num_rows, linear, how, **settings)
    x = torch.randn(64, num_in, device=device, dtype=torch.bfloat16)
    first = some_rows_product(x, linear, how)
    assert all(torch.equal(some_rows_product(x, linear, how), first) for _ in range(100))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "qwen3_moe"])
def test_answers_with_our_products_in_graphs(family, device):
    module, reference = tiny_pair(family, device, torch.bfloat16)
    lines = []
    engine = build(module, device, torch.bfloat16, lines)
    assert isinstance(engine.model, GraphedModel), lines
    results = generate_all(engine, prompts(), greedy(12))
    assert_near(reference, results, TOLERANCE["logits"][torch.bfloat16])
    single = [generate_all(engine, [prompt], greedy(12))[0] for prompt in prompts()]
    assert_near(reference, single, TOLERANCE["logits"][torch.bfloat16])


@pytest.mark.parametrize(
    ("family", "changes"), [("phi3", LONGROPE), ("llama", DYNAMIC)], ids=["longrope", "dynamic"]
)
def test_rotary_tables_let_models_run_in_graphs(family, changes, device):
    """Some of these modules wait for the device. With the long factors, as for long contexts."""
    if family == "phi3":
        rope = {**changes["rope_parameters"]}
        changes = {**changes, "rope_parameters": {**rope, "short_factor": rope["long_factor"]}}
    module, reference = tiny_pair(family, device, torch.bfloat16, **changes)
    lines = []
    engine = build(module, device, torch.bfloat16, lines)
    assert isinstance(engine.model, GraphedModel), lines
    assert any(isinstance(part, RotaryTable) for part in module.modules())
    results = generate_all(engine, prompts(), greedy(12))
    assert_near(reference, results, TOLERANCE["logits"][torch.bfloat16])


@pytest.mark.parametrize("num_rows", [2, 16])
@torch.inference_mode()
def test_early_launches_read_what_the_kernels_before_wrote(num_rows, device, monkeypatch):
    """A long chain of kernels that write over each other's inputs has the bits of a slow chain."""
    monkeypatch.delenv(VARIABLE, raising=False)
    if not launches_early(device):
        pytest.skip("the device has no programmatic dependent launch")
    module, _ = tiny_pair("llama", device, torch.bfloat16, hidden_size=256, intermediate_size=1024)
    check_packing(module, device, module.config.vocab_size)
    fuse_modules(module)
    use_everywhere(module, device, TILES[-1])
    groups = {group[0].kind: group[0] for group in product_groups(module)}
    norm, projection = module.model.norm, groups["turned qkv"]
    start = torch.randn(num_rows, 256, generator=torch.Generator().manual_seed(0))
    start = start.to(device, torch.bfloat16)

    def chain():
        hidden = start.clone()
        for _ in range(100):
            qkv = normed_product(hidden, projection.norm, projection.linear)
            hidden = groups["output"].run(qkv[:, :256].contiguous(), hidden)
            gated = groups["normed gate_up"].run(hidden, hidden)
            hidden = norm(groups["down"].run(gated, hidden))
        return hidden

    results = []
    for value in ("0", "1"):
        monkeypatch.setenv(VARIABLE, value)
        launch_settings.cache_clear()
        assert launch_settings(device)["EARLY"] is (value == "1")
        results += [chain() for _ in range(3)]
        replay = CudaCapturer(device).capture(chain)
        results += [replay().clone() for _ in range(3)]
    monkeypatch.undo()
    launch_settings.cache_clear()
    assert torch.isfinite(results[0]).all()
    assert results[0].abs().max() > 0
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_products_are_timed_and_chosen(device):
    module, _ = tiny_pair("llama", device, torch.bfloat16, hidden_size=512, intermediate_size=2048)
    check_packing(module, device, module.config.vocab_size)
    fuse_modules(module)
    lines = []
    timings = choose_products(module, lines.append, TILES, SOME_TILES)
    assert len(timings) == 4 * (len(ROW_COUNTS) + len(TIMED_COUNTS)), lines
    for timing in timings:
        print(timing)
        assert timing.tile is not None
        assert timing.torch > 0
        assert timing.own > 0
    down = module.model.layers[0].mlp.down_proj
    chosen = [n for n in ROW_COUNTS if way_of(down, n) is not None]
    assert chosen == [t.num_rows for t in timings if t.kind == "down" and t.own < t.torch]
