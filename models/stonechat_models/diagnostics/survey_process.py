"""Surveys models in another process, so that a server does not import PyTorch for it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

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

    One process surveys them all. It ends with the iterator.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries warn there of what they lack
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for config in configs:
            try:
                process.stdin.write(msgspec.json.encode(config, enc_hook=plain) + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if not line:
                yield ModelLoadError(f"the process that surveys {config.model} has ended")
                continue
            answer = msgspec.json.decode(line, type=SurveyAnswer)
            yield answer.survey or ModelLoadError(answer.error)
    finally:
        process.kill()
        process.communicate()  # closes its pipes
