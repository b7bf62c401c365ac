"""The inference side: engine, sampler and models. It knows nothing of HTTP.

The names below are the whole public surface. Those in `_LAZY` are imported on first use, so that
importing the types does not import torch.
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
    GRAMMAR_FAILED,
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
    StopRules,
    StopScope,
    TopLogprob,
)
from stonechat_models.version import __version__

if TYPE_CHECKING:
    from stonechat_models.checkpoint.aliases import read_aliases, set_alias
    from stonechat_models.checkpoint.resolve import fetch_model
    from stonechat_models.checkpoint.store import StoredModel, list_models, remove_model
    from stonechat_models.diagnostics.bandwidth import measure_bandwidth
    from stonechat_models.diagnostics.machine import Machine, inspect_machine
    from stonechat_models.diagnostics.memory_plan import ModelSurvey, survey_model
    from stonechat_models.diagnostics.serving_forms import ServingForm
    from stonechat_models.grammar.compiler import check_grammar
    from stonechat_models.hardware.cpus import usable_cpus
    from stonechat_models.runtime.async_engine import AsyncEngine
    from stonechat_models.text.tokenizer import Tokenizer

__all__ = [
    "GRAMMAR_FAILED",
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
    "Machine",
    "ModelInfo",
    "ModelLoadError",
    "ModelSurvey",
    "PromptTooLongError",
    "ReasoningSpec",
    "RequestOutput",
    "RequestTimings",
    "SamplingParams",
    "ServingForm",
    "StepError",
    "StopRules",
    "StopScope",
    "StoredModel",
    "Tokenizer",
    "TopLogprob",
    "UnsupportedModelError",
    "__version__",
    "check_grammar",
    "fetch_model",
    "inspect_machine",
    "list_models",
    "measure_bandwidth",
    "read_aliases",
    "remove_model",
    "set_alias",
    "survey_model",
    "usable_cpus",
]

_LAZY = {
    "AsyncEngine": "runtime.async_engine",
    "Machine": "diagnostics.machine",
    "ModelSurvey": "diagnostics.memory_plan",
    "ServingForm": "diagnostics.serving_forms",
    "StoredModel": "checkpoint.store",
    "Tokenizer": "text.tokenizer",
    "check_grammar": "grammar.compiler",
    "fetch_model": "checkpoint.resolve",
    "inspect_machine": "diagnostics.machine",
    "list_models": "checkpoint.store",
    "measure_bandwidth": "diagnostics.bandwidth",
    "usable_cpus": "hardware.cpus",
    "read_aliases": "checkpoint.aliases",
    "remove_model": "checkpoint.store",
    "set_alias": "checkpoint.aliases",
    "survey_model": "diagnostics.memory_plan",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
