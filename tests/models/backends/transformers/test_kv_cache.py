"""What the KV cache stores and returns, in every dtype that it supports."""

import pytest
import torch

from stonechat_models.backends.quantization.device_support import FP8, kv_dtype, refuse_kv_format
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.row import RowBackend
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.backends.transformers.kv_cache import KVCache, LayerKVShape
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.runtime.build import build_engine
from tests.models.engines import CPU, generate_all, greedy, make_engine, reference_greedy
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.models.tiny_tokenizers import ascii_backend

DTYPES = [torch.float32, torch.bfloat16, FP8]
BLOCK_SIZE = 4
CUDA = torch.device("cuda", 0)


def make_cache(dtype: torch.dtype) -> KVCache:
    shapes = {0: LayerKVShape(2, 8, 6), 3: LayerKVShape(1, 4, 4)}
    devices = dict.fromkeys(shapes, CPU)
    return KVCache(shapes, num_blocks=5, block_size=BLOCK_SIZE, dtype=dtype, devices=devices)


def random_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_is_read_back_rounded(dtype: torch.dtype) -> None:
    cache = make_cache(dtype)
    slots = torch.tensor([5, 0, 17])
    # Laid out [H, T, D], as a model's projections are.
    key, value = random_rows(2, 3, 8).transpose(0, 1), random_rows(2, 3, 6, seed=1).transpose(0, 1)
    cache.write(0, slots, key, value)
    assert cache.keys[0].dtype == cache.values[0].dtype == dtype
    other_slots = torch.ones(20, dtype=torch.bool).index_fill(0, slots, False).nonzero().squeeze(1)
    read = cache.layer(0).read(slots.view(3, 1), torch.float32)
    untouched = cache.layer(0).read(other_slots, torch.float32)
    for actual, rest, rows in zip(read, untouched, (key, value), strict=True):
        assert torch.equal(actual.squeeze(1), rows.to(dtype).float())
        assert (rest == 0).all()
    assert (cache.layer(3).read(slots, torch.float32)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_values_saturate_in_fp8(dtype: torch.dtype) -> None:
    cache = make_cache(FP8)
    large = torch.tensor([448.0, 449.0, 500.0, 60000.0, -450.0, -60000.0, float("inf"), 1.0])
    rows = large.to(dtype).expand(1, 2, 8)
    cache.write(0, torch.tensor([2]), rows, rows[..., :6])
    read = cache.layer(0).read(torch.tensor([2]), torch.float32)[0][0, 1]
    assert read.tolist() == [448.0, 448.0, 448.0, 448.0, -448.0, -448.0, 448.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_are_copied_from_their_old_contents(dtype: torch.dtype) -> None:
    cache = make_cache(dtype)
    slots = torch.arange(20)
    cache.write(0, slots, random_rows(20, 2, 8), random_rows(20, 2, 6, seed=1))
    before = cache.layer(0).read(slots, torch.float32)[0].view(5, BLOCK_SIZE, 2, 8)
    cache.copy_blocks([(1, 0), (0, 3)])  # the source of the second is the first's destination
    after = cache.layer(0).read(slots, torch.float32)[0].view(5, BLOCK_SIZE, 2, 8)
    assert torch.equal(after, before[[1, 1, 2, 0, 4]])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("backend", [BatchedBackend(), SdpaBackend(), RowBackend()])
def test_answers_over_an_fp8_cache_are_near_plain_ones(family: str, backend: object) -> None:
    module = tiny_model(family)
    for parameter in module.parameters():  # to the scale of trained weights
        parameter.data.mul_(0.5)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (3, 30, 9)]
    engine = make_engine(module, backend, kv_dtype=FP8, max_batch_tokens=16)
    plain = make_engine(module, backend, max_batch_tokens=16)
    assert engine.model.info.kv_bytes_per_token * 4 == plain.model.info.kv_bytes_per_token
    differences = []
    for prompt, result in zip(prompts, generate_all(engine, prompts, greedy(1)), strict=True):
        _, logprobs = reference_greedy(module, prompt, 1)
        entry = result.logprobs[0]
        expected = [float(logprobs[0][token_id]) for token_id in entry.top_ids]
        differences += [abs(a - b) for a, b in zip(entry.top_logprobs, expected, strict=True)]
    assert 1e-6 < max(differences) < 0.1, max(differences)


def test_cached_prefixes_and_copied_blocks_are_the_same_in_fp8() -> None:
    module, prompt = tiny_model("llama"), list(range(3, 40))
    for parameters in (greedy(6), greedy(6, n=2)):
        engine = make_engine(module, RowBackend(), kv_dtype=FP8, row_multiple=32)
        first = generate_all(engine, [prompt], parameters)[0]
        again = generate_all(engine, [prompt], parameters)[0]
        assert again.num_cached_tokens >= 32
        assert again.token_ids == first.token_ids


def test_dtypes_by_name() -> None:
    assert kv_dtype("auto", torch.float16) == torch.float16
    assert kv_dtype("bfloat16", torch.float32) == torch.bfloat16
    assert kv_dtype("fp8", torch.bfloat16) == FP8


def test_fp8_is_refused_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(UnsupportedModelError, match=r"from compute capability 8\.9 on.*has 8\.0"):
        refuse_kv_format("fp8", "triton", CUDA)
    refuse_kv_format("bfloat16", "triton", CUDA)
    refuse_kv_format("fp8", "batched", CUDA)
    capability = (8, 9)
    refuse_kv_format("fp8", "triton", CUDA)
    refuse_kv_format("fp8", "row", CPU)
    with pytest.raises(UnsupportedModelError, match="paper attention backend cannot read an fp8"):
        refuse_kv_format("fp8", "paper", CUDA)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_int8_is_refused(device: torch.device) -> None:
    with pytest.raises(UnsupportedModelError, match="only the compiled CPU kernels keep an int8"):
        refuse_kv_format("int8", "sdpa", device)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(path)
    ascii_backend().save(str(path / "tokenizer.json"))
    return str(path)


@pytest.mark.parametrize(("name", "itemsize"), [("auto", 4), ("bfloat16", 2), ("fp8", 1)])
def test_build_engine_allocates_the_configured_dtype(folder: str, name: str, itemsize: int) -> None:
    config = EngineConfig(
        model=folder,
        device="cpu",
        backend="transformers",
        kv_cache_dtype=name,  # type: ignore[arg-type]
        kv_cache_bytes=1 << 20,
    )
    engine, _ = build_engine(config, lambda line: None)
    info, cache = engine.model.info, engine.model._cache  # type: ignore[attr-defined]
    tensors = [*cache.keys.values(), *cache.values.values()]
    assert {t.dtype.itemsize for t in tensors} == {itemsize}
    num_bytes = sum(t.numel() * t.element_size() for t in tensors)
    assert num_bytes == info.kv_bytes_per_token * (info.num_blocks + 1) * info.block_size


def test_the_native_backend_refuses_other_dtypes(folder: str) -> None:
    config = EngineConfig(model=folder, device="cpu", backend="native", kv_cache_dtype="fp8")
    with pytest.raises(ModelLoadError, match="in bfloat16 or int8, not in fp8"):
        build_engine(config, lambda line: None)
