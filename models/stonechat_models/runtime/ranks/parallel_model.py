"""The model of rank 0: it lets the other ranks compute their parts of each step."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from stonechat_models.backends.base import ForwardBatch
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_info import ModelInfo
from stonechat_models.runtime.ipc import Allocate, CopyBlocks, CountFree
from stonechat_models.runtime.ranks.followers import Followers, GiveUp
from stonechat_models.runtime.ranks.group import (
    join_group,
    least_free_memory,
    open_store,
    rank_environment,
    wait_for_all,
)
from stonechat_models.runtime.ranks.messages import step_message
from stonechat_models.runtime.ranks.refusals import refuse_uneven

if TYPE_CHECKING:
    from stonechat_models.backends.transformers.model import TransformersModel

Result = TypeVar("Result")


class ParallelModel:
    """A `CausalModel` whose batches are on the CPU, and whose logits are on rank 0's device.

    It never raises for a fault in a step: it gives up.
    """

    def __init__(self, model: "TransformersModel", followers: Followers) -> None:
        self._model = model
        self._followers = followers

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    @info.setter
    def info(self, info: ModelInfo) -> None:
        self._model.info = info

    @property
    def hidden_size(self) -> int:
        return self._model.hidden_size

    def least_free_memory(self) -> int:
        """Return how many bytes are free on every device."""
        self._followers.send(CountFree())
        with self._followers.stepping():
            return least_free_memory(self._model.device)

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._followers.send(Allocate(num_blocks, block_size))
        self._model.allocate_kv_cache(num_blocks, block_size)
        with self._followers.stepping():
            wait_for_all()

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        self._followers.send(CopyBlocks(pairs))
        with self._followers.stepping():
            self._model.copy_blocks(pairs)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        return self._step(batch, self._model.forward)

    def forward_hidden(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return self._step(batch, self._model.forward_hidden)

    def _step(self, batch: ForwardBatch, compute: Callable[[ForwardBatch], Result]) -> Result:
        device = self._model.device
        self._followers.send(step_message(batch))
        with self._followers.stepping():
            result = compute(batch.to(device))
            if device.type == "cuda":  # or a step that never ends would not be noticed
                torch.cuda.synchronize(device)
            return result


def load_parallel_model(
    files: ModelFiles,
    config: EngineConfig,
    device: torch.device,
    progress: Progress,
    give_up: GiveUp,
) -> ParallelModel:
    """Start the other ranks, and load the model with them: each reads its part of the weights.

    Raises `ModelLoadError`. If the process of another rank ends, `give_up` is called, now or later.
    """
    size = config.tensor_parallel
    store, port = open_store(size)
    config = replace(config, model=str(files.folder), threads=max(1, (config.threads or 1) // size))
    ranks = [
        (replace(config, device=_device_name(device, rank)), rank_environment(rank, size, device))
        for rank in range(1, size)
    ]
    progress(f"starting {size - 1} more processes, one for each further device")
    followers = Followers(ranks, port, give_up)
    refuse_uneven(files, size)  # this imports what the others import now too
    with followers.loading():
        join_group(store, 0, size, device)
        model = load_part(files, config, device, progress)
    return ParallelModel(model, followers)


def load_part(
    files: ModelFiles, config: EngineConfig, device: torch.device, progress: Progress
) -> "TransformersModel":
    """Load this rank's part of the model, which all ranks do together.

    Raises `ModelLoadError`, also for a model that does not run over the paged KV cache.
    """
    from stonechat_models.backends.transformers.loading.load import load_transformers_model
    from stonechat_models.backends.transformers.loading.split import refuse_whole_weights
    from stonechat_models.backends.transformers.model import TransformersModel

    model = load_transformers_model(files, config, device, progress)
    if type(model) is not TransformersModel:
        raise ModelLoadError("only models over the paged KV cache can be split between devices")
    refuse_whole_weights(model.module, config.tensor_parallel)
    return model


def _device_name(device: torch.device, rank: int) -> str:
    return "cpu" if device.type == "cpu" else f"{device.type}:{rank}"
