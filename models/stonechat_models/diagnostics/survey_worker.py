"""The process that surveys models: `python -m stonechat_models.diagnostics.survey_worker`.

A task is an `EngineConfig` as JSON, and the answer is a `SurveyAnswer` as JSON.
"""

import os

import msgspec

from stonechat_models.child_process import serve_tasks
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.survey_process import SurveyAnswer
from stonechat_models.errors import ModelLoadError

NICENESS = 10


def _answer(task: bytes) -> bytes:
    from stonechat_models.diagnostics.memory_plan import survey_model

    config = msgspec.json.decode(task, type=EngineConfig)
    try:
        answer = SurveyAnswer(survey=survey_model(config, lambda _: None))
    except ModelLoadError as error:
        answer = SurveyAnswer(error=str(error))
    except Exception as error:
        text = f"{config.model} cannot be surveyed: {type(error).__name__}: {error}"
        answer = SurveyAnswer(error=text)
    return msgspec.json.encode(answer)


if __name__ == "__main__":
    os.nice(NICENESS)
    serve_tasks(_answer)
