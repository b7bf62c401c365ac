"""What loading a model takes, and what all loaded models may take together. In bytes."""

from dataclasses import dataclass

from stonechat_models import ModelInfo, ModelSurvey, size_text
from stonechat_server.errors import APIError
from stonechat_server.settings import Settings

DOES_NOT_FIT = "model_does_not_fit"
SHARE_OF_FREE = 0.9
"""The part of the free memory that is the budget, if the settings name none."""
PROCESS_BYTES = 256 << 20
"""What an engine process takes beside weights and KV cache."""
CUDA_PROCESS_BYTES = 1536 << 20
"""The same on a CUDA device, where the context and the buffers of a step lie too."""
MAX_CPU_KV_BYTES = 4 << 30
"""The default KV cache of a model on a CPU is not larger."""
MIN_KV_BYTES = 64 << 20
"""No KV cache is planned smaller, even if the budget leaves less."""
MIN_KV_FRACTION = 1 / 16
"""The default KV cache of a model is at least this part of the budget, if the budget allows it."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one model takes on its device."""

    device: str
    weight_bytes: int
    kv_bytes: int
    """The KV cache and recurrent states."""
    process_bytes: int

    @property
    def total(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.process_bytes

    def __str__(self) -> str:
        return (
            f"{size_text(self.total)} on {self.device} (weights {size_text(self.weight_bytes)}, KV "
            f"cache {size_text(self.kv_bytes)}, process {size_text(self.process_bytes)})"
        )


def budget_of(settings: Settings, survey: ModelSurvey) -> int:
    """What all models on the device of a survey may take, if none is loaded there yet."""
    return settings.memory_budget or int(survey.free_memory * SHARE_OF_FREE)


def planned_need(
    settings: Settings, survey: ModelSurvey, budget: int, num_models: int
) -> MemoryNeed:
    """What a model is to take. `num_models`: how many share the budget, loaded or not.

    The settings of the model decide the size of its KV cache. If they do not, the cache gets what
    the weights leave of an equal share of the budget, within the bounds above.
    """
    form = next((form for form in survey.forms if form.is_default), None)
    weights = survey.stored_bytes if form is None else form.weight_bytes
    weights += survey.draft.weight_bytes if survey.draft else 0
    process = _process_bytes(survey.device)
    if settings.kv_cache_size is not None:
        kv_bytes = int(settings.kv_cache_size)
    elif survey.use != "generation":
        kv_bytes = 0
    elif settings.kv_cache_fraction is not None and form is not None:
        kv_bytes = form.kv_tokens * form.kv_bytes_per_token
    else:
        kv_bytes = max(budget // num_models - weights - process, int(budget * MIN_KV_FRACTION))
        kv_bytes = max(MIN_KV_BYTES, min(kv_bytes, budget - weights - process))
        if survey.device == "cpu":
            kv_bytes = min(kv_bytes, MAX_CPU_KV_BYTES)
    return MemoryNeed(survey.device, weights, kv_bytes, process)


def loaded_need(model: ModelInfo) -> MemoryNeed:
    """What a model that is loaded takes."""
    kv_bytes = model.kv_capacity_tokens * model.kv_bytes_per_token
    kv_bytes += model.num_state_slots * model.state_bytes
    weights = model.weight_bytes + sum([adapter.num_bytes for adapter in model.adapters])
    if model.draft is not None:
        weights += model.draft.weight_bytes
        kv_bytes += model.kv_capacity_tokens * model.draft.kv_bytes_per_token
    return MemoryNeed(model.device, weights, kv_bytes, _process_bytes(model.device))


def does_not_fit(name: str, need: MemoryNeed, budget: int, pinned_bytes: int) -> APIError:
    """A 503 with the numbers. To try again does not help."""
    pinned = f", of which pinned models hold {size_text(pinned_bytes)}" if pinned_bytes else ""
    return APIError(
        503,
        f"The model '{name}' does not fit: it needs {need}, and the budget is {size_text(budget)}"
        f"{pinned}. A smaller KV cache (kv_cache_size) or a larger --memory-budget may help.",
        type="server_error",
        code=DOES_NOT_FIT,
        param="model",
        headers={"x-should-retry": "false"},
    )


def _process_bytes(device: str) -> int:
    return CUDA_PROCESS_BYTES if device.startswith("cuda") else PROCESS_BYTES
