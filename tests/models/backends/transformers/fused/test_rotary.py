"""The kernel between projection and attention, against PyTorch operators in transformers' order."""

import pytest
import torch

pytest.importorskip("triton")

from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm
from stonechat_models.backends.transformers.fused.rotary import rope_and_store
from stonechat_models.backends.transformers.kv_cache import KVCache, LayerKVShape
from tests.nightly import nightly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_SLOTS = 24
MARK = 3.0
"""The content of unwritten cache slots."""
TOLERANCE = {torch.float32: 1e-6, torch.float16: 0.0, torch.bfloat16: 4e-2}


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    norm = LlamaRMSNorm(weight.shape[0], eps=1e-5)
    norm.weight = torch.nn.Parameter(weight)
    return norm(x)


class Case:
    """Random projected tokens, the last of them padding, and the cache slots of the others."""

    def __init__(
        self,
        *,
        num_tokens: int = 5,
        num_padding: int = 0,
        heads: tuple[int, int] = (4, 2),
        size: int = 16,
        rotary: int | None = None,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        has_norm: bool = False,
        is_gated: bool = False,
        scale: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

        rows = num_tokens + num_padding
        self.heads, self.size, self.rotary = heads, size, size if rotary is None else rotary
        self.is_gated = is_gated
        self.qkv = random(rows, (heads[0] * (1 + is_gated) + 2 * heads[1]) * size) * scale
        angles = torch.rand(1, rows, max(2, self.rotary) // 2, generator=generator) * 6
        angles = torch.cat((angles, angles), dim=-1)
        self.cos, self.sin = (f(angles).to(dtype).to(DEVICE) for f in (torch.cos, torch.sin))
        slots = max(NUM_SLOTS, rows)
        self.slots = torch.randperm(slots, generator=generator)[:num_tokens].to(DEVICE)
        self.weights = (random(size) + 1.0, random(size) + 1.0) if has_norm else None
        self.cache = self.new_cache(slots, kv_dtype or dtype)

    def new_cache(self, slots: int, dtype: torch.dtype) -> KVCache:
        shape = LayerKVShape(self.heads[1], self.size, self.size)
        cache = KVCache(
            {0: shape}, num_blocks=slots, block_size=1, dtype=dtype, devices={0: self.qkv.device}
        )
        for tensor in (cache.keys[0], cache.values[0]):
            tensor.copy_(torch.full(tensor.shape, MARK))
        return cache

    def run(self, angles: int | None = None) -> torch.Tensor:
        norms = None
        if self.weights is not None:
            query, key = (torch.nn.Parameter(weight) for weight in self.weights)
            norms = (FusedRMSNorm(query, 1e-5, 0.0, True), FusedRMSNorm(key, 1e-5, 0.0, True))
        with torch.no_grad():
            return rope_and_store(
                self.qkv,
                (self.cos[..., :angles], self.sin[..., :angles]),
                self.slots,
                self.cache.keys[0],
                self.cache.values[0],
                num_heads=self.heads[0],
                rotary_size=self.rotary,
                norms=norms,
                is_gated=self.is_gated,
            )

    @torch.no_grad()
    def expected(self) -> tuple[torch.Tensor, KVCache]:
        num_heads, num_kv_heads = self.heads
        sizes = [n * self.size for n in (num_heads * (1 + self.is_gated), *[num_kv_heads] * 2)]
        parts = self.qkv.split(sizes, dim=1)
        query, key, value = (
            part.unflatten(1, (n, -1))[:, :, : self.size]
            for part, n in zip(parts, (num_heads, num_kv_heads, num_kv_heads), strict=True)
        )
        if self.weights is not None:
            query, key = rms_norm(query, self.weights[0]), rms_norm(key, self.weights[1])
        if self.rotary:
            rotary_parts = [
                x[..., : self.rotary].transpose(0, 1).unsqueeze(0) for x in (query, key)
            ]
            rotated = apply_rotary_pos_emb(*rotary_parts, self.cos, self.sin)
            query, key = (
                torch.cat((rotated_part.squeeze(0).transpose(0, 1), x[..., self.rotary :]), dim=-1)
                for x, rotated_part in zip((query, key), rotated, strict=True)
            )
        cache = self.new_cache(*(self.cache.keys[0].shape[0], self.cache.keys[0].dtype))
        n = len(self.slots)
        cache.write(0, self.slots, key[:n], value[:n])
        return query[:n], cache

    def check(self, angles: int | None = None) -> None:
        """Compare `run` with `expected`: bit for bit in float16, where every rounding is the same.

        The interpreter truncates bfloat16 instead of rounding it.
        """
        query, cache = self.expected()
        actual_query = self.run(angles)[: len(self.slots)]
        rtol = TOLERANCE[self.qkv.dtype]
        torch.testing.assert_close(actual_query, query, rtol=rtol, atol=rtol)
        for actual, expected in (
            (self.cache.keys[0], cache.keys[0]),
            (self.cache.values[0], cache.values[0]),
        ):
            torch.testing.assert_close(actual.float(), expected.float(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_norm", [False, True])
def test_dtypes(dtype, has_norm):
    Case(dtype=dtype, has_norm=has_norm).check()


@pytest.mark.parametrize("heads", [(9, 3), *nightly((1, 1), (8, 1))], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 70])
def test_heads(heads, num_tokens):
    Case(heads=heads, num_tokens=num_tokens).check()


@pytest.mark.parametrize(
    ("size", "rotary"), [(16, 8), (24, 24), (80, 32), (16, 0), (128, 128)], ids=str
)
def test_sizes(size, rotary):
    Case(size=size, rotary=rotary, has_norm=True).check()


@pytest.mark.parametrize("has_norm", [False, True])
def test_queries_with_gates_behind_them(has_norm):
    Case(heads=(6, 2), size=16, rotary=4, has_norm=has_norm, is_gated=True).check()


def test_angles_of_sequences_of_one_token():
    """A step of a model with recurrent states has them in another dimension."""
    case = Case()
    case.cos, case.sin = case.cos.transpose(0, 1), case.sin.transpose(0, 1)
    actual = case.run()
    case.cos, case.sin = case.cos.transpose(0, 1), case.sin.transpose(0, 1)
    torch.testing.assert_close(actual, case.expected()[0], rtol=1e-5, atol=1e-5)


def test_one_angle_for_each_pair():
    Case(size=16, rotary=8).check(angles=4)


def test_padding_is_neither_stored_nor_read():
    case = Case(num_tokens=3, num_padding=4)
    case.qkv[3:] = float("nan")
    case.check()
    is_written = (case.cache.keys[0] != MARK).flatten(1).any(dim=1)
    assert is_written.sum() == 3
    assert is_written[case.slots].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_fp8_cache_is_saturated(dtype):
    """With numbers that float8 has or that exceed it: the interpreter rounds others wrongly."""
    case = Case(dtype=dtype, kv_dtype=torch.float8_e4m3fn, scale=100.0, rotary=0)
    case.qkv = case.qkv.clamp(-448, 448).to(torch.float8_e4m3fn).to(dtype)
    case.qkv[:, ::7] *= 64
    assert case.qkv.abs().max() > 1000
    case.check()
    values = case.cache.values[0].float()
    assert torch.isfinite(values).all()
    assert values.abs().max() == 448
