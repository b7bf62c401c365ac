"""Surveys are kept, and made again where they said that a model cannot be loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from stonechat_models import EngineConfig, ModelLoadError, ModelSurvey
from stonechat_server.catalog import loader
from stonechat_server.catalog.loader import ProcessLoader
from stonechat_server.settings import Settings
from tests.server.catalog.scripted_models import ScriptedLoader, in_loop


@in_loop
async def test_a_model_whose_files_were_replaced_is_surveyed_again() -> None:
    settings = Settings(model="m")
    good = await ScriptedLoader({"m": 1}).survey(settings)
    answers: list[ModelSurvey | ModelLoadError] = [
        ModelLoadError("there is no file"),
        replace(good, refusal="this type is not served"),
        good,
    ]

    def survey(configs: Sequence[EngineConfig]) -> Iterator[ModelSurvey | ModelLoadError]:
        for _ in configs:
            yield answers.pop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "survey_models", survey)
        surveys = ProcessLoader()
        with pytest.raises(ModelLoadError, match="no file"):
            await surveys.survey(settings)
        assert (await surveys.survey(settings)).refusal == "this type is not served"
        assert await surveys.survey(settings) is good
        assert await surveys.survey(settings) is good
