"""The process that surveys models: `python -m stonechat_models.diagnostics.survey_worker`.

Each line of its input is an `EngineConfig` as JSON. It answers each with a line of JSON: a
`SurveyAnswer`. It ends with its input.
"""

import os
import signal
import sys
from typing import BinaryIO

import msgspec

from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.survey_process import SurveyAnswer
from stonechat_models.errors import ModelLoadError

NICENESS = 10


def main() -> None:
    """Survey models until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which ends this process
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    for line in sys.stdin.buffer:
        _answer(line, answers)


def _answer(line: bytes, answers: BinaryIO) -> None:
    from stonechat_models.diagnostics.memory_plan import survey_model

    config = msgspec.json.decode(line, type=EngineConfig)
    try:
        answer = SurveyAnswer(survey=survey_model(config, lambda _: None))
    except ModelLoadError as error:
        answer = SurveyAnswer(error=str(error))
    except Exception as error:
        text = f"{config.model} cannot be surveyed: {type(error).__name__}: {error}"
        answer = SurveyAnswer(error=text)
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
