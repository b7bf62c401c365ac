"""What is said of GPUs whose answers the tests give."""

import sysconfig
from pathlib import Path

import pytest
import torch

from stonechat_models.backends.quantization import device_support
from stonechat_models.backends.transformers.attention import choose
from stonechat_models.diagnostics import gpu_support
from stonechat_models.diagnostics.gpu_support import KV_FP8, GpuSupport, why_no_code

DEVICE = torch.device("cuda", 0)


class Host:
    """What a described machine has, all of it at first."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.packages = {"triton", "torchao"}
        self.commands = {"gcc"}
        self.headers = folder / "include"
        self.headers.mkdir()
        (self.headers / "Python.h").touch()
        patch.delenv("CC", raising=False)
        for module in (choose, device_support):
            patch.setattr(module, "find_spec", lambda name: name if name in self.packages else None)
        patch.setattr(
            gpu_support.shutil, "which", lambda name: name if name in self.commands else None
        )
        patch.setattr(sysconfig, "get_path", lambda name: str(self.headers))
        self.capability = (9, 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
        patch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "sm_120"])

    @property
    def support(self) -> GpuSupport:
        return gpu_support.gpu_support(DEVICE)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_new_gpu_supports_all(host: Host) -> None:
    precisions = dict.fromkeys(("int8", "int4", "fp8", KV_FP8))
    assert host.support == GpuSupport("bfloat16", "triton", None, None, precisions)


def test_a_gpu_before_float8(host: Host) -> None:
    host.capability = (8, 6)
    support = host.support
    assert (support.dtype, support.triton_refusal, support.torch_refusal) == (
        "bfloat16",
        None,
        None,
    )
    refusals = support.precision_refusals
    assert refusals["int8"] is refusals["int4"] is None
    for name in ("fp8", KV_FP8):
        assert "8.9" in (refusals[name] or "")


def test_a_gpu_before_bfloat16(host: Host) -> None:
    host.capability = (7, 5)
    support = host.support
    assert (support.dtype, support.attention, support.torch_refusal) == ("float16", "batched", None)
    assert "capability 7.5; the Triton kernels need 8.0" in (support.triton_refusal or "")
    assert support.precision_refusals["int8"] is None
    assert support.precision_refusals["int4"] is not None
    host.capability = (7, 0)
    assert "has code for sm_75, sm_80, sm_90, sm_120 only" in (host.support.torch_refusal or "")


@pytest.mark.parametrize("compiler", ["gcc", "clang", "CC"])
def test_triton_needs_a_compiler(compiler: str, host: Host) -> None:
    host.commands = set()
    support = host.support
    assert (support.attention, support.dtype) == ("batched", "bfloat16")
    assert "Triton needs a C compiler" in (support.triton_refusal or "")
    host.commands = {compiler}
    if compiler == "CC":
        host.patch.setenv("CC", "/opt/cc")
    assert host.support.triton_refusal is None


def test_triton_needs_the_headers_of_python(host: Host) -> None:
    (host.headers / "Python.h").unlink()
    assert "headers of Python" in (host.support.triton_refusal or "")


def test_triton_is_not_installed(host: Host) -> None:
    host.packages = {"torchao"}
    support = host.support
    assert support.attention == "batched"
    assert support.triton_refusal == "Triton is not installed"
    assert "fp8 weights on a GPU need triton" in (support.precision_refusals["fp8"] or "")


@pytest.mark.parametrize(
    ("capability", "architectures", "has_code"),
    [
        ((8, 9), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((12, 1), ["sm_90", "sm_120"], True),
        ((10, 0), ["sm_90", "sm_120"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], True),
    ],
    ids=str,
)
def test_code_for_a_device(
    capability: tuple[int, int], architectures: list[str], has_code: bool
) -> None:
    refusal = why_no_code(capability, architectures)
    assert (refusal is None) == has_code
    assert has_code or architectures[0] in str(refusal)
