"""What generates: engine, sampler and models. Knows no HTTP.

These names are the whole public surface. `AsyncEngine` and `Tokenizer` are imported on first use,
so that the types cost no import of torch.
"""

from typing import TYPE_CHECKING

from stonechat_models.config import EngineConfig
from stonechat_models.errors import (
    EngineDeadError,
    EngineError,
    GrammarError,
    InvalidParamsError,
    ModelLoadError,
    PromptTooLongError,
    StepError,
    UnsupportedModelError,
)
from stonechat_models.types import (
    MAX_N,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    CompletionDelta,
    EngineStats,
    FinishReason,
    GenerateRequest,
    GrammarSpec,
    LogprobEntry,
    ModelInfo,
    ReasoningSpec,
    RequestOutput,
    RequestTimings,
    SamplingParams,
    TopLogprob,
)
from stonechat_models.version import __version__

if TYPE_CHECKING:
    from stonechat_models.async_engine import AsyncEngine
    from stonechat_models.tokenizer import Tokenizer

__all__ = [
    "MAX_N",
    "MAX_STOP_STRINGS",
    "MAX_TOP_LOGPROBS",
    "AsyncEngine",
    "CompletionDelta",
    "EngineConfig",
    "EngineDeadError",
    "EngineError",
    "EngineStats",
    "FinishReason",
    "GenerateRequest",
    "GrammarError",
    "GrammarSpec",
    "InvalidParamsError",
    "LogprobEntry",
    "ModelInfo",
    "ModelLoadError",
    "PromptTooLongError",
    "ReasoningSpec",
    "RequestOutput",
    "RequestTimings",
    "SamplingParams",
    "StepError",
    "Tokenizer",
    "TopLogprob",
    "UnsupportedModelError",
    "__version__",
]

_LAZY = {"AsyncEngine": "async_engine", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
