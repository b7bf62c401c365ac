"""Which precisions a device supports. The tests replace what the device reports."""

from dataclasses import replace

import pytest
import torch

from stonechat_models.backends.quantization import device_support
from stonechat_models.backends.quantization.device_support import precision_of, refuse_weight_format
from stonechat_models.backends.transformers.loading.quantize import dtypes
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.runtime.build import build_engine

CPU, MPS, CUDA = torch.device("cpu"), torch.device("mps"), torch.device("cuda", 0)
CONFIGS = {p: EngineConfig(model="x", quantize=p) for p in ("int8", "int4", "fp8")}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def all_packages_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_support, "find_spec", lambda _: object())


def with_capability(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize(
    ("capability", "supported"),
    [
        ((7, 5), ["int8"]),
        ((8, 0), ["int8", "int4"]),
        ((8, 6), ["int8", "int4"]),
        ((8, 9), ["int8", "int4", "fp8"]),
        ((9, 0), ["int8", "int4", "fp8"]),
        ((12, 0), ["int8", "int4", "fp8"]),
    ],
)
def test_a_gpu_supports_what_its_capability_allows(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], supported: list[str]
) -> None:
    with_capability(monkeypatch, *capability)
    for precision, config in CONFIGS.items():
        if precision in supported:
            refuse_weight_format(config, CUDA)
            continue
        needed = {"int4": r"8\.0", "fp8": r"8\.9"}[precision]
        has = r"\.".join(map(str, capability))
        with pytest.raises(
            UnsupportedModelError,
            match=f"{precision} weights need compute capability {needed}, and cuda:0 has {has}",
        ):
            refuse_weight_format(config, CUDA)


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with_capability(monkeypatch, 9, 0)
    monkeypatch.setattr(device_support, "find_spec", lambda _: None)
    for precision, config in CONFIGS.items():
        package = "triton" if precision == "fp8" else "torchao"
        hint = rf"{package}: pip install 'stonechat\[gpu\]'"
        with pytest.raises(UnsupportedModelError, match=hint):
            refuse_weight_format(config, CUDA)
        refuse_weight_format(replace(config, quantize="none"), CUDA)
    refuse_weight_format(CONFIGS["int8"], MPS)


def test_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with_capability(monkeypatch, 9, 0)
    for device in (CPU, MPS):
        with pytest.raises(UnsupportedModelError, match=f"compute capability 8.9.*not {device}"):
            refuse_weight_format(CONFIGS["fp8"], device)
    with pytest.raises(UnsupportedModelError, match="int4 weights are not supported on mps"):
        refuse_weight_format(CONFIGS["int4"], MPS)
    for precision in ("int8", "int4"):
        deterministic = replace(CONFIGS[precision], deterministic=True)
        refuse_weight_format(deterministic, CPU)
        with pytest.raises(UnsupportedModelError, match="fixed order"):
            refuse_weight_format(deterministic, CUDA)


def test_fp8_weights_are_refused_before_anything_is_loaded() -> None:
    config = EngineConfig(model="there/is-none", quantize="fp8", device="cpu")
    with pytest.raises(UnsupportedModelError, match="fp8 weights need a CUDA device"):
        build_engine(config, lambda line: None)


def test_the_dtypes_of_models_with_quantised_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with_capability(monkeypatch, 9, 0)
    for precision, expected in (("int8", torch.float16), ("int4", torch.bfloat16)):
        assert dtypes(CONFIGS[precision], "float16", CUDA) == (expected, expected)
    for precision in ("int4", "fp8"):
        config = replace(CONFIGS[precision], dtype="bfloat16")
        assert dtypes(config, "float16", CUDA) == (torch.bfloat16, torch.bfloat16)
        with pytest.raises(UnsupportedModelError, match="in bfloat16, not float16"):
            dtypes(replace(config, dtype="float16"), "float16", CUDA)


def test_the_precision_of_a_configuration() -> None:
    assert precision_of(EngineConfig(model="x")) is None
    assert precision_of(EngineConfig(model="x", quantize="none")) is None
    assert precision_of(CONFIGS["fp8"]) == "fp8"
