"""`stonechat plan` and `stonechat doctor`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from stonechat_models import EngineConfig, Machine, inspect_machine, survey_model
from stonechat_server.cli import main
from stonechat_server.commands import doctor, plan


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    config = LlamaConfig(vocab_size=96, **sizes, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_the_plan_has_the_right_sizes_and_speed(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--bandwidth", "10", "--kv-cache-size", "1MiB", "--json"]
    assert main(["plan", str(tiny), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["served"] is True
    row = next(row for row in result["forms"] if row["form"] == "float32")
    assert row["weight_bytes"] == result["parameters"] * 4
    assert row["kv_bytes_per_token"] == 2 * 2 * 32 * 4  # layers, K and V, head size, bytes
    assert row["kv_tokens"] == 2**20 // 512
    assert row["full_length_requests"] == 2048 // 128
    bytes_read = row["weight_bytes"] - 96 * 64 * 4  # a step reads one row of the embedding
    assert row["decode_tokens_per_second_at_most"] == pytest.approx(10e9 / bytes_read)


def test_the_plan_has_the_sizes_of_each_rank(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--bandwidth", "10", "--tensor-parallel", "2"]
    assert main(["plan", str(tiny), *flags]) == 1
    assert "needs equal parts, and the model has 1 key and value heads" in " ".join(
        capsys.readouterr().out.split()
    )
    config = AutoConfig.from_pretrained(tiny, num_key_value_heads=2, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), *flags]) == 0
    assert "2; free memory and the sizes below are those of each" in capsys.readouterr().out
    assert main(["plan", str(tmp_path), *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tensor_parallel"] == 2
    row = next(row for row in result["forms"] if row["form"] == "float32")
    norms = 5 * 64  # they are on each rank
    assert row["weight_bytes"] == 4 * ((result["parameters"] - norms) // 2 + norms)
    assert row["kv_bytes_per_token"] == 2 * 2 * 32 * 4  # layers, K and V, head size, bytes
    # On a CPU both ranks read their halves through the same memory.
    assert row["decode_tokens_per_second_at_most"] == pytest.approx(5e9 / row["weight_bytes"])


def test_the_plan_is_made_for_the_flags_of_serve(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--bandwidth", "10", "--quantize", "int8", "--threads", "1"]
    assert main(["plan", str(tiny), *flags, "--json"]) == 0
    forms = json.loads(capsys.readouterr().out)["forms"]
    assert [row["form"] for row in forms if row["default"]] == ["int8"]


def test_the_plan_measures_bandwidth(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "LlamaForCausalLM" in output
    assert "GB/s" in output


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"device": "cuda:0"}, "triton attention, with CUDA graphs"),
        (
            {"device": "cuda:0", "attention": "batched", "graphs_refusal": "it is old"},
            "batched attention, without CUDA graphs: it is old",
        ),
        ({"device": "cuda:0", "use": "embeddings"}, None),
    ],
    ids=["cpu", "graphs", "no graphs", "embedder"],
)
def test_the_plan_says_how_steps_run_on_a_gpu(
    tiny: Path, changes: dict[str, object], expected: str | None
) -> None:
    config = EngineConfig(model=str(tiny), device="cpu", backend="transformers")
    survey = replace(survey_model(config, lambda line: None), attention="triton")
    survey = replace(survey, **changes)  # type: ignore[arg-type]
    assert plan._facts(survey, 1e9).get("steps") == expected
    assert plan.describe(survey, [], 1e9)["graphs_refusal"] == survey.graphs_refusal


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"may_take_images": True}, "yes, if the checks at load pass"),
        ({"may_take_images": True, "image_refusal": "it is blind"}, "no: it is blind"),
    ],
)
def test_the_plan_says_whether_a_model_takes_images(
    tiny: Path, changes: dict[str, object], expected: str | None
) -> None:
    config = EngineConfig(model=str(tiny), device="cpu")
    survey = replace(survey_model(config, lambda line: None), **changes)  # type: ignore[arg-type]
    assert plan._facts(survey, 1e9).get("images") == expected
    described = plan.describe(survey, [], 1e9)
    assert described["images"] is (expected is not None and expected.startswith("yes"))
    assert described["image_refusal"] == changes.get("image_refusal", "")


def test_the_plan_says_whether_a_model_takes_audio(tiny: Path) -> None:
    survey = survey_model(EngineConfig(model=str(tiny), device="cpu"), lambda line: None)
    assert "audio" not in plan._facts(survey, 1e9)
    hears = replace(survey, may_take_audio=True)
    assert plan._facts(hears, 1e9)["audio"] == "yes, if the checks at load pass"
    assert plan.describe(hears, [], 1e9)["audio"] is True
    deaf = replace(hears, audio_refusal="it is deaf")
    assert plan._facts(deaf, 1e9)["audio"] == "no: it is deaf"
    assert plan.describe(deaf, [], 1e9)["audio_refusal"] == "it is deaf"


def test_a_missing_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "none.gguf")]) == 1
    assert "none.gguf" in capsys.readouterr().err


def test_the_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--no-measure", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable_cpus"] >= 1
    assert main(["doctor", "--no-measure"]) == 0
    assert "Will run on" in capsys.readouterr().out


@pytest.fixture(scope="module")
def machine() -> Machine:
    good = {"cpu_quota": None, "free_memory": 10**11, "cache_free_bytes": 10**11, "gpus": ()}
    return replace(
        inspect_machine(lambda line: None),
        **good,
        system="Linux x86_64",
        usable_cpus=4,
        num_cores=4,
        has_nvidia_driver=False,
        instruction_sets=("avx512_vnni",),
        native_isa="avx512-vnni",
        native_library="/opt/kernels.so",
        native_refusal=None,
        missing_instructions=None,
        package_versions={"triton": "3", "uvloop": "1"},
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"native_isa": None, "native_refusal": "x", "compiler": None}, ["cannot be used", "g++"]),
        ({"missing_instructions": "no VNNI"}, ["no VNNI"]),
        ({"cpu_quota": 1.5}, ["--threads 1"]),
        ({"num_cores": 2}, ["two threads"]),
        ({"has_nvidia_driver": True, "torch_cuda": ""}, ["CUDA build"]),
        ({"free_memory": 10**8}, ["100.0 MB of memory"]),
        ({"cache_free_bytes": 10**8}, ["100.0 MB are free at"]),
    ],
)
def test_advice(machine: Machine, changes: dict[str, object], expected: list[str]) -> None:
    suggestions = list(doctor.advice(replace(machine, **changes)))  # type: ignore[arg-type]
    assert len(suggestions) == len(expected)
    for line, part in zip(suggestions, expected, strict=True):
        assert part in line
