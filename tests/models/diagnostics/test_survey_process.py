"""Surveys in another process equal those in this one."""

import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
from pydantic import ByteSize

from stonechat_models import EngineConfig, ModelLoadError, ModelSurvey, survey_model, survey_models
from stonechat_models.diagnostics import survey_process, survey_worker


@pytest.mark.nightly  # two processes that import PyTorch
def test_another_process_finds_the_same(tmp_path, default_model_files) -> None:
    config = EngineConfig(model=str(default_model_files.weights[0]), device="cpu")
    answers = survey_models([replace(config, model=str(tmp_path / "nothing")), config])
    assert "there is no file or folder" in str(next(answers))
    found = next(answers)
    assert isinstance(found, ModelSurvey)
    expected = survey_model(config, lambda _: None)
    free = {"free_memory": 0, "forms": ()}  # other programs run, too
    assert replace(found, **free) == replace(expected, **free)
    assert [(form.name, form.weight_bytes, form.kv_bytes_per_token) for form in found.forms] == [
        (form.name, form.weight_bytes, form.kv_bytes_per_token) for form in expected.forms
    ]
    with pytest.raises(StopIteration):
        next(answers)


def test_an_answer_crosses_a_pipe_as_it_is(default_model_files) -> None:
    config = EngineConfig(model=str(default_model_files.weights[0]), device="cpu")
    good, bad = (
        msgspec.json.decode(
            survey_worker._answer(msgspec.json.encode(model)), type=survey_process.SurveyAnswer
        )
        for model in (config, replace(config, model="/nothing/here"))
    )
    assert bad.survey is None
    assert "there is no file or folder /nothing/here" in bad.error
    free = {"free_memory": 0, "forms": ()}  # other programs run, too
    assert good.survey is not None
    expected = survey_model(config, lambda _: None)
    assert replace(good.survey, **free) == replace(expected, **free)
    assert [form.weight_bytes for form in good.survey.forms] == [
        form.weight_bytes for form in expected.forms
    ]


def test_a_process_that_ends_is_an_answer(monkeypatch) -> None:
    monkeypatch.setattr(survey_process, "MODULE", "stonechat_models.errors")
    size = ByteSize(1024)  # as settings have it
    (answer,) = survey_models([EngineConfig(model="m", kv_cache_bytes=size)])
    assert isinstance(answer, ModelLoadError)
    assert "surveys m" in str(answer)


def test_a_server_does_not_import_pytorch_for_it() -> None:
    code = "import sys; from stonechat_models import survey_models; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
