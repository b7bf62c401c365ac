"""The inference side: engine, sampler and models. It knows nothing of HTTP.

The names below are the whole public surface. Those in `_LAZY` are imported on first use, so that
importing the types does not import torch.
"""

from typing import TYPE_CHECKING

from stonechat_models.config import EngineConfig
from stonechat_models.errors import (
    CostlyGrammarError,
    EngineDeadError,
    EngineError,
    GrammarError,
    InvalidMediaError,
    InvalidParamsError,
    ModelLoadError,
    PromptTooLongError,
    StepError,
    TooManyChecksError,
    TooManyMediaError,
    UnsupportedModelError,
)
from stonechat_models.model_info import (
    AdapterInfo,
    AudioInfo,
    EmbeddingInfo,
    EngineStats,
    ImageInfo,
    ModelInfo,
    ModelUse,
    RankingInfo,
    SamplingDefaults,
    SpeechInfo,
    VideoInfo,
    size_text,
)
from stonechat_models.transcript import SpeechParams, SpeechSegment, SpeechWord, Transcript
from stonechat_models.types import (
    GRAMMAR_FAILED,
    MAX_N,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    CompletionDelta,
    EmbeddingParams,
    FinishReason,
    GenerateRequest,
    GrammarSpec,
    LogprobEntry,
    MediaInput,
    MediaTensor,
    Modality,
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
    from stonechat_models.checkpoint.alias_target import alias_model
    from stonechat_models.checkpoint.known.aliases import read_aliases, set_alias
    from stonechat_models.checkpoint.known.store import StoredModel, list_models, remove_model
    from stonechat_models.checkpoint.resolve import fetch_model
    from stonechat_models.diagnostics.bandwidth import measure_bandwidth
    from stonechat_models.diagnostics.gpu_support import GpuSupport
    from stonechat_models.diagnostics.machine import Gpu, Machine, inspect_machine
    from stonechat_models.diagnostics.memory_plan import survey_model
    from stonechat_models.diagnostics.stored_templates import stored_chat_templates
    from stonechat_models.diagnostics.survey import ModelSurvey, ServingForm
    from stonechat_models.diagnostics.survey_process import survey_models
    from stonechat_models.grammar.checker import GrammarChecker
    from stonechat_models.grammar.cost import is_cheap
    from stonechat_models.grammar.schemas.plain_schema import plain_schema
    from stonechat_models.grammar.schemas.relaxation import relax_schema
    from stonechat_models.grammar.source import check_grammar
    from stonechat_models.hardware.cpus import cpu_name, usable_cpus
    from stonechat_models.media.document.processor import DocumentProcessor, document_refusal
    from stonechat_models.media.processor import MediaProcessor
    from stonechat_models.media.records import (
        AudioOptions,
        Document,
        DocumentOptions,
        ImageOptions,
        PreparedMedia,
        VideoOptions,
    )
    from stonechat_models.runtime.async_engine import AsyncEngine
    from stonechat_models.text.any_of import any_of
    from stonechat_models.text.pair_frame import PairFrame
    from stonechat_models.text.tokenizer import Tokenizer

__all__ = [
    "GRAMMAR_FAILED",
    "MAX_N",
    "MAX_STOP_STRINGS",
    "MAX_TOP_LOGPROBS",
    "AdapterInfo",
    "AsyncEngine",
    "AudioInfo",
    "AudioOptions",
    "CompletionDelta",
    "CostlyGrammarError",
    "Document",
    "DocumentOptions",
    "DocumentProcessor",
    "EmbeddingInfo",
    "EmbeddingParams",
    "EngineConfig",
    "EngineDeadError",
    "EngineError",
    "EngineStats",
    "FinishReason",
    "GenerateRequest",
    "Gpu",
    "GpuSupport",
    "GrammarChecker",
    "GrammarError",
    "GrammarSpec",
    "ImageInfo",
    "ImageOptions",
    "InvalidMediaError",
    "InvalidParamsError",
    "LogprobEntry",
    "Machine",
    "MediaInput",
    "MediaProcessor",
    "MediaTensor",
    "Modality",
    "ModelInfo",
    "ModelLoadError",
    "ModelSurvey",
    "ModelUse",
    "PairFrame",
    "PreparedMedia",
    "PromptTooLongError",
    "RankingInfo",
    "ReasoningSpec",
    "RequestOutput",
    "RequestTimings",
    "SamplingDefaults",
    "SamplingParams",
    "ServingForm",
    "SpeechInfo",
    "SpeechParams",
    "SpeechSegment",
    "SpeechWord",
    "StepError",
    "StopRules",
    "StopScope",
    "StoredModel",
    "Tokenizer",
    "TooManyChecksError",
    "TooManyMediaError",
    "TopLogprob",
    "Transcript",
    "UnsupportedModelError",
    "VideoInfo",
    "VideoOptions",
    "__version__",
    "alias_model",
    "any_of",
    "check_grammar",
    "cpu_name",
    "document_refusal",
    "fetch_model",
    "inspect_machine",
    "is_cheap",
    "list_models",
    "measure_bandwidth",
    "plain_schema",
    "read_aliases",
    "relax_schema",
    "remove_model",
    "set_alias",
    "size_text",
    "stored_chat_templates",
    "survey_model",
    "survey_models",
    "usable_cpus",
]

_LAZY = {
    "AudioOptions": "media.records",
    "AsyncEngine": "runtime.async_engine",
    "Gpu": "diagnostics.machine",
    "GpuSupport": "diagnostics.gpu_support",
    "Machine": "diagnostics.machine",
    "ModelSurvey": "diagnostics.survey",
    "ServingForm": "diagnostics.survey",
    "StoredModel": "checkpoint.known.store",
    "PairFrame": "text.pair_frame",
    "Tokenizer": "text.tokenizer",
    "Document": "media.records",
    "DocumentOptions": "media.records",
    "DocumentProcessor": "media.document.processor",
    "GrammarChecker": "grammar.checker",
    "ImageOptions": "media.records",
    "MediaProcessor": "media.processor",
    "PreparedMedia": "media.records",
    "VideoOptions": "media.records",
    "alias_model": "checkpoint.alias_target",
    "any_of": "text.any_of",
    "check_grammar": "grammar.source",
    "cpu_name": "hardware.cpus",
    "document_refusal": "media.document.processor",
    "fetch_model": "checkpoint.resolve",
    "is_cheap": "grammar.cost",
    "inspect_machine": "diagnostics.machine",
    "list_models": "checkpoint.known.store",
    "measure_bandwidth": "diagnostics.bandwidth",
    "plain_schema": "grammar.schemas.plain_schema",
    "relax_schema": "grammar.schemas.relaxation",
    "usable_cpus": "hardware.cpus",
    "read_aliases": "checkpoint.known.aliases",
    "remove_model": "checkpoint.known.store",
    "set_alias": "checkpoint.known.aliases",
    "stored_chat_templates": "diagnostics.stored_templates",
    "survey_model": "diagnostics.memory_plan",
    "survey_models": "diagnostics.survey_process",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
