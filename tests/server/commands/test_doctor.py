"""What `stonechat doctor` says about machines that the tests describe."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from stonechat_models import Gpu, GpuSupport, Machine
from stonechat_server.commands import doctor

MACHINE = Machine(
    system="Linux 6.1 x86_64",
    cpu="Some Processor",
    num_cpus=8,
    usable_cpus=8,
    num_cores=8,
    cpu_quota=None,
    instruction_sets=("avx2", "avx512_vnni"),
    total_memory=64 * 10**9,
    free_memory=32 * 10**9,
    gpus=(),
    has_nvidia_driver=False,
    torch_version="2.9",
    torch_cuda="",
    package_versions={"transformers": "5.0", "triton": "", "uvloop": "0.22"},
    compiler="/usr/bin/g++",
    native_isa="avx512",
    native_library="/opt/kernels.so",
    native_refusal=None,
    missing_instructions=None,
    cache_folder=Path("/home/me/.cache"),
    cache_free_bytes=10**12,
)
REFUSALS = {"int8": None, "int4": None, "fp8": "it is too old", "fp8 KV cache": None}
SUPPORT = GpuSupport("bfloat16", "triton", None, None, REFUSALS)
GPU = Gpu("Some GPU", "cuda", 80 * 10**9, 70 * 10**9, "9.0", SUPPORT)
OLD_GPU = dataclasses.replace(
    GPU,
    capability="7.0",
    support=GpuSupport("float16", "batched", "it is old", "the installed torch is new", {}),
)


def machine(**changes: object) -> Machine:
    return dataclasses.replace(MACHINE, **changes)  # type: ignore[arg-type]


def advice(**changes: object) -> list[str]:
    return list(doctor.advice(machine(**changes)))


def report(described: Machine, bandwidth: dict[str, float], suggestions: list[str]) -> str:
    output = io.StringIO()
    device = doctor.chosen_device(described)
    console = Console(file=output, width=200, color_system=None)
    doctor.print_report(console, described, device, bandwidth, suggestions)
    return output.getvalue()


def test_a_good_machine_gets_no_advice() -> None:
    assert advice() == []
    assert advice(gpus=(GPU,), package_versions={"triton": "3.5", "uvloop": "0.22"}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"has_nvidia_driver": True}, "(torch 2.9 is built without it): install a CUDA build"),
        ({"has_nvidia_driver": True, "torch_cuda": "12.8"}, "torch cannot use CUDA: install"),
        ({"native_isa": None, "native_refusal": "no AVX2"}, "cannot be used: no AVX2"),
        ({"missing_instructions": "no VNNI"}, "more slowly: no VNNI"),
        ({"cpu_quota": 2.5}, "set --threads 2"),
        ({"cpu_quota": 0.5}, "set --threads 1"),
        ({"num_cores": 4}, "8 processors are 4 cores"),
        ({"free_memory": 10**9}, "only 1.0 GB of memory are free"),
        ({"cache_free_bytes": 10**9}, "only 1.0 GB are free at /home/me/.cache"),
        ({"package_versions": {"triton": "", "uvloop": ""}}, "install uvloop"),
    ],
)
def test_each_shortcoming_has_its_advice(changes: dict[str, object], expected: str) -> None:
    (line,) = advice(**changes)
    assert expected in line


def test_what_keeps_a_gpu_from_being_fast() -> None:
    code, kernels = advice(gpus=(OLD_GPU, GPU))
    assert "has compute capability 7.0, and the installed torch is new: install a build" in code
    assert "without Triton kernels and CUDA graphs: it is old" in kernels
    apple = dataclasses.replace(GPU, kind="mps", support=None)
    assert advice(gpus=(apple,)) == []


def test_a_missing_compiler_is_named_after_what_it_prevents() -> None:
    refusal, compiler = advice(native_isa=None, native_refusal="no compiler", compiler=None)
    assert "cannot be used: no compiler" in refusal
    assert "install a C++ compiler" in compiler


def test_the_report_of_a_machine_with_a_gpu() -> None:
    described = machine(gpus=(GPU,), torch_cuda="12.8")
    text = report(described, {"cpu": 50e9, "cuda": 3000e9}, ["buy another"])
    assert "Will run on cuda: PyTorch on Some GPU" in text
    assert "reads 50.0 GB/s" in text
    assert "Some GPU (capability 9.0), 70.0 GB of 80.0 GB free, moves 3,000 GB/s" in text
    assert "bfloat16, triton attention, with CUDA graphs" in text
    assert "can quantise to int8, int4, fp8 KV cache, not to fp8" in text
    assert "2.9, CUDA 12.8" in text
    assert "! buy another" in text
    assert "nothing to improve" not in text


def test_the_report_of_an_old_gpu() -> None:
    text = report(machine(gpus=(OLD_GPU,)), {}, [])
    assert "float16, batched attention, without CUDA graphs" in text
    assert "can quantise to nothing" in text


def test_the_report_of_a_machine_without_a_gpu() -> None:
    text = report(machine(cpu_quota=4.0), {}, [])
    assert "Will run on cpu: compiled CPU kernels (avx512)" in text
    assert "8 (8 of 8, quota 4)" in text
    assert "none that torch can use" in text
    assert "2.9, no CUDA" in text
    assert "triton missing" in text
    assert "GB/s" not in text
    assert "There is nothing to improve." in text
    bare = machine(native_isa=None, native_refusal="no AVX2", compiler=None, instruction_sets=())
    slow = machine(native_isa="avx2", missing_instructions="this processor has no VNNI")
    assert "avx2: this processor has no VNNI" in report(slow, {}, [])
    text = report(bare, {}, [])
    assert "Will run on cpu: PyTorch on the CPU" in text
    assert "not used: no AVX2" in text
    assert "none that make models faster" in text


@pytest.mark.parametrize(
    ("gpus", "measured"), [((), ["cpu"]), ((GPU,), ["cpu", "cuda"])], ids=["cpu", "gpu"]
)
def test_json_has_the_bandwidth_of_each_device(
    gpus: tuple[Gpu, ...],
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speeds = {"cpu": 50e9, "cuda": 3000e9}
    monkeypatch.setattr("stonechat_models.inspect_machine", lambda _: machine(gpus=gpus))
    monkeypatch.setattr("stonechat_models.measure_bandwidth", speeds.__getitem__)
    assert doctor.run(doctor.Options(prints_json=True)) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["bandwidth"] == {name: speeds[name] for name in measured}
    assert answer["device"] == measured[-1]
    assert answer["cache_folder"] == "/home/me/.cache"
    assert doctor.run(doctor.Options(prints_json=True, measure=False)) == 0
    assert json.loads(capsys.readouterr().out)["bandwidth"] == {}


def test_models_whose_calls_have_an_unknown_form_are_named() -> None:
    templates = {"known": "{{ tools }} <tool_call>", "none": "{{ m }}", "odd": "{{ tools }}"}
    (line,) = doctor.template_advice(templates)
    assert line.startswith("odd: its chat template shows tools")


def test_models_without_a_chat_template_are_named() -> None:
    (line,) = doctor.template_advice({"base": None, "known": "{{ messages }}"})
    assert line.startswith("base: the model has no chat template")
    assert "`role: content`" in line
    assert "--chat-template" in line
