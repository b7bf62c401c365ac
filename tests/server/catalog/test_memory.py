"""What a model is planned to take, against numbers that are added up by hand."""

import dataclasses

import pytest

from stonechat_models import ModelSurvey, ServingForm
from stonechat_server.catalog.memory import (
    CUDA_PROCESS_BYTES,
    PROCESS_BYTES,
    MemoryNeed,
    budget_of,
    loaded_need,
    planned_need,
)
from stonechat_server.settings import Settings
from tests.server.fake_engine import model_info

GIB = 1 << 30

SURVEY = ModelSurvey(
    name="m",
    architecture="LlamaForCausalLM",
    num_parameters=1,
    num_active_parameters=1,
    stored_bytes=9 * GIB,
    stored_types={},
    max_model_len=4096,
    device="cpu",
    total_memory=64 * GIB,
    free_memory=40 * GIB,
    refusal=None,
    native_refusal=None,
    forms=(
        ServingForm("float32", "transformers", 8 * GIB, 1, 2048, 1, False),
        ServingForm("as stored", "native", 2 * GIB, 1, 1024, 1 << 20, True),
    ),
)
ON_CUDA = dataclasses.replace(SURVEY, device="cuda:0")


def test_the_budget_is_named_or_a_part_of_what_is_free() -> None:
    assert budget_of(Settings(memory_budget=5 * GIB), SURVEY) == 5 * GIB
    assert budget_of(Settings(), SURVEY) == int(36 * GIB)


@pytest.mark.parametrize(
    ("settings", "survey", "budget", "num_models", "kv_bytes"),
    [
        (Settings(kv_cache_size=7 * GIB), SURVEY, 20 * GIB, 2, 7 * GIB),
        (Settings(kv_cache_fraction=0.5), SURVEY, 20 * GIB, 2, GIB),
        (Settings(), ON_CUDA, 20 * GIB, 2, 8 * GIB - CUDA_PROCESS_BYTES),  # 20 / 2 - 2
        (Settings(), ON_CUDA, 32 * GIB, 16, 2 * GIB),  # a sixteenth of the budget
        (Settings(), ON_CUDA, 4 * GIB, 1, 2 * GIB - CUDA_PROCESS_BYTES),  # all that is left
        (Settings(), ON_CUDA, 2 * GIB, 1, 64 << 20),  # that does not fit
        (Settings(), SURVEY, 20 * GIB, 2, 4 * GIB),  # the most on a CPU
        (Settings(), SURVEY, 8 * GIB, 2, 2 * GIB - PROCESS_BYTES),
        (Settings(), dataclasses.replace(SURVEY, use="embeddings"), 20 * GIB, 2, 0),
    ],
)
def test_the_size_of_the_cache(
    settings: Settings, survey: ModelSurvey, budget: int, num_models: int, kv_bytes: int
) -> None:
    need = planned_need(settings, survey, budget, num_models)
    process = CUDA_PROCESS_BYTES if survey is ON_CUDA else PROCESS_BYTES
    assert need == MemoryNeed(survey.device, 2 * GIB, kv_bytes, process)
    assert need.total == 2 * GIB + kv_bytes + process


def test_a_model_without_a_form_counts_as_it_is_stored() -> None:
    survey = dataclasses.replace(SURVEY, forms=())
    need = planned_need(Settings(kv_cache_size=GIB), survey, 20 * GIB, 1)
    assert need.weight_bytes == 9 * GIB


def test_a_loaded_model_takes_what_its_engine_says() -> None:
    info = model_info(
        weight_bytes=GIB, num_blocks=64, block_size=16, kv_bytes_per_token=1024,
        num_state_slots=3, state_bytes=1000,
    )  # fmt: skip
    assert loaded_need(info) == MemoryNeed("cpu", GIB, 64 * 16 * 1024 + 3000, PROCESS_BYTES)
