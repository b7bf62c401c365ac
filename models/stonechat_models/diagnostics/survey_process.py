"""Surveys models in another process, so that a server does not import PyTorch for it."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from stonechat_models.child_process import ChildEndedError, ChildProcess
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.survey import ModelSurvey
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.ipc import plain

MODULE = "stonechat_models.diagnostics.survey_worker"


@dataclass(frozen=True, slots=True)
class SurveyAnswer:
    """The survey of one model, or why there is none."""

    survey: ModelSurvey | None = None
    error: str = ""


def survey_models(configs: Sequence[EngineConfig]) -> Iterator[ModelSurvey | ModelLoadError]:
    """Yield what `survey_model` returns or raises for each config, in order (blocking).

    One process surveys them all, or another one once it has ended. It ends with the iterator.
    """
    process = ChildProcess(MODULE)
    try:
        for config in configs:
            task = msgspec.json.encode(config, enc_hook=plain)
            try:  # however long it takes: it may fetch headers, or compile the CPU kernels
                data = process.ask(task, threading.TIMEOUT_MAX)
            except ChildEndedError:
                yield ModelLoadError(f"the process that surveys {config.model} has ended")
                continue
            answer = msgspec.json.decode(data, type=SurveyAnswer)
            yield answer.survey or ModelLoadError(answer.error)
    finally:
        process.end()
