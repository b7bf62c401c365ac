"""What clients are told of models: of all that are served, of those that are loaded, and of one."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from stonechat_models import ModelInfo
from stonechat_server.access.auth import LATEST
from stonechat_server.catalog.entry import Entry
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.completions_api.fill_in import fill_in_format

if TYPE_CHECKING:
    from stonechat_models import ModelSurvey


USES = {
    "generation": "completion",
    "embeddings": "embedding",
    "reranking": "rerank",
    "transcription": "audio",
}
"""What Ollama calls what a model does. It has no word for rerankers."""
NEVER = datetime(9999, 12, 31, tzinfo=UTC)
"""When a model ends that stays loaded."""


class OllamaDetails(msgspec.Struct, kw_only=True):
    """The kind of a model."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(msgspec.Struct, kw_only=True):
    """A model that is served. The size is that of its weights; 0 as long as it is unknown."""

    name: str
    model: str
    modified_at: datetime
    size: int
    digest: str
    details: OllamaDetails
    capabilities: list[str]


class OllamaModelList(msgspec.Struct):
    """The models that the key may use."""

    models: list[OllamaModel]


class OllamaLoadedModel(msgspec.Struct, kw_only=True):
    """A model that is loaded. The size is all that it takes in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: datetime
    size_vram: int
    context_length: int


class OllamaLoadedList(msgspec.Struct):
    """The models that are loaded, of those that the key may use."""

    models: list[OllamaLoadedModel]


class OllamaModelDetails(msgspec.Struct, kw_only=True):
    """One model. Its template is Jinja; empty as long as the model was never loaded."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: datetime


def in_list(name: str, entry: Entry) -> OllamaModel:
    """A line of `/api/tags`."""
    return OllamaModel(
        name=full_name(name),
        model=full_name(name),
        modified_at=_created(entry),
        size=_weight_bytes(entry),
        digest=_digest(entry),
        details=_details(name, entry),
        capabilities=_capabilities(name, entry),
    )


def in_memory(name: str, entry: Entry, *, never_ends: bool) -> OllamaLoadedModel:
    """A line of `/api/ps`. `never_ends`: the model stays loaded whatever its settings say."""
    info, settings = _info(entry), entry.settings
    size, keeps = entry.num_bytes or 0, settings.pinned or settings.keep_alive < 0
    ends = NEVER
    if not (never_ends or keeps):
        idle = time.monotonic() - entry.last_used
        rest = settings.keep_alive if entry.num_users else settings.keep_alive - idle
        ends = datetime.now(UTC) + timedelta(seconds=rest)
    return OllamaLoadedModel(
        name=full_name(name),
        model=full_name(name),
        size=size,
        digest=_digest(entry),
        details=_details(name, entry),
        expires_at=ends,
        size_vram=size if info is not None and info.device.startswith("cuda") else 0,
        context_length=entry.max_model_len or 0,
    )


def described(name: str, entry: Entry) -> OllamaModelDetails:
    """The answer of `/api/show`."""
    details, served = _details(name, entry), entry.served
    info = _info(entry)
    defaults = {} if served is None else _parameters(served)
    values = {
        "general.architecture": details.family,
        "general.basename": name,
        "general.parameter_count": info.num_parameters if info is not None else 0,
        f"{details.family}.context_length": entry.max_model_len or 0,
    }
    if served is not None and served.engine.model.embedding is not None:
        values[f"{details.family}.embedding_length"] = served.engine.model.embedding.size
    return OllamaModelDetails(
        modelfile=f"FROM {name}\n",
        parameters="\n".join([f"{key} {value}" for key, value in defaults.items()]),
        template="" if served is None else served.templates.default.source,
        details=details,
        model_info=values,
        capabilities=_capabilities(name, entry),
        modified_at=_created(entry),
    )


def full_name(name: str) -> str:
    """A name as Ollama's clients know it: with a tag behind a colon."""
    return name if ":" in name else name + LATEST


def _created(entry: Entry) -> datetime:
    return datetime.fromtimestamp(entry.created, UTC)


def _info(entry: Entry) -> "ModelInfo | ModelSurvey | None":
    """What is known of a model: of its engine, or else of its files."""
    return entry.survey if entry.served is None else entry.served.engine.model


def _weight_bytes(entry: Entry) -> int:
    if entry.served is not None:
        return entry.served.engine.model.weight_bytes
    return 0 if entry.survey is None else entry.survey.stored_bytes


def _digest(entry: Entry) -> str:
    return "" if entry.served is None else entry.served.engine.model.weights_hash


def _details(name: str, entry: Entry) -> OllamaDetails:
    info, view = _info(entry), entry.views.get(name)
    family = level = ""
    if info is not None:
        family = re.split("For|LMHead|Model", info.architecture)[0].lower()
    if entry.served is not None:
        model = entry.served.engine.model
        level = model.dtype if model.quantization == "none" else model.quantization
    return OllamaDetails(
        parent_model="" if view is None else view.parent or "",
        format="" if info is None else info.file_format,
        family=family,
        families=[family] if family else [],
        parameter_size="" if info is None else _count_text(info.num_parameters),
        quantization_level=level,
    )


def _count_text(number: int) -> str:
    """A number of parameters, such as 135M or 1.7B."""
    if number >= 10**9:
        return f"{number / 10**9:.1f}B"
    return f"{number / 10**6:.0f}M"


def _parameters(served: ServedModel) -> Mapping[str, float]:
    """The sampling that the model's makers recommend, with Ollama's names."""
    defaults = served.engine.model.sampling_defaults
    values = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
    }
    return {name: value for name, value in values.items() if value is not None}


def _capabilities(name: str, entry: Entry) -> list[str]:
    """What a model can do. Of one that was never loaded, only its kind is known."""
    served = entry.views.get(name)
    if served is None:
        return [] if entry.survey is None else [USES[entry.survey.use]]
    info = served.engine.model
    traits = served.structure.traits(served.templates.default.source)
    can = {
        "completion": info.generates,
        "tools": info.generates and (traits.renders_tools or traits.renders_calls),
        "thinking": info.generates and traits.markers is not None,
        "insert": info.generates
        and fill_in_format(served.engine.tokenizer.added_tokens) is not None,
        "vision": info.images is not None,
        "audio": info.audio is not None,
        "embedding": info.embedding is not None,
        "rerank": info.ranking is not None,
    }
    return [capability for capability, is_there in can.items() if is_there]
