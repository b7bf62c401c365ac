"""Loads a model's own PyTorch code and its weights from its files, and refuses what is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from stonechat_models.backends.transformers.kinds import auto_class
from stonechat_models.backends.transformers.loading.adapter import (
    merge_adapter,
    refuse_unasked_adapter,
)
from stonechat_models.backends.transformers.lora.install import refuse_other_layers
from stonechat_models.backends.transformers.stored.choice import read_kept_codes
from stonechat_models.backends.transformers.stored.codes import CodedParts
from stonechat_models.backends.transformers.stored.packed_weights import packed_source
from stonechat_models.backends.transformers.stored.size import refuse_oversized
from stonechat_models.checkpoint.cache import Progress, content_hash, fill_once
from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.checkpoint.gguf.weights import write_weights
from stonechat_models.checkpoint.resolve import ModelFiles, tower_parameters
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading


def load_module(
    files: ModelFiles,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    attn_implementation: str | None = "sdpa",
    model_class: Any = None,
    unused: tuple[str, ...] = (),
    keeps_codes: bool = False,
    progress: Progress = lambda line: None,
) -> nn.Module:
    """Load the model's own PyTorch code, unmodified, in eval mode.

    `model_class` loads it, by default the class that `auto_class` chooses. Weights whose names
    begin as in `unused` may be missing: nothing is computed with them.

    The weights are on `device`, or spread by accelerate if `config.device_map` is set. Of a model
    that several devices share, this rank's part of them is there (see `runtime/ranks`). With
    `keeps_codes`, quantised weights stay so, if any can and their products are right. The first
    load of another GGUF file writes its weights to the cache, dequantised to safetensors of
    `dtype`.
    Raises `ModelLoadError` if weights are missing or do not fit the module.
    """
    transformers_logging.disable_progress_bar()
    folder = files.folder
    refuse_unasked_adapter(folder)
    has_own_code = config.trust_remote_code and "auto_map" in files.config.raw
    sees = config.tensor_parallel == 1 and not _adapts_text_class(files)
    codes = CodedParts()
    if keeps_codes:
        codes = read_kept_codes(
            files, model_class or auto_class(files.config, sees=sees), device, dtype, progress
        )
    if files.gguf is not None and not codes:
        folder = _dequantised_folder(files, files.gguf, dtype, progress)
    with reading(files.name), torch.inference_mode(False):
        model_class = model_class or auto_class(files.config, has_own_code, sees=sees)
        refuse_oversized(files, model_class)
        with (
            packed_source(files, folder, model_class, config, dtype, codes) as (
                module_class,
                source,
            ),
            _without_warnings(),
        ):
            module, report = module_class.from_pretrained(
                **source,
                dtype=dtype,
                attn_implementation=attn_implementation,
                **_places(config, device),
                trust_remote_code=config.trust_remote_code,
                use_safetensors=None if config.allow_pickle else True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # the report has them
                output_loading_info=True,
            )
    if codes:
        module.__class__ = type(module).__bases__[0]
    _check_report(files.name, report, unused, is_gguf=files.gguf is not None)
    if files.adapter is not None:
        merge_adapter(module, files.adapter, files.name)
    refuse_other_layers(module, files.adapters, files.name)
    complete_outputs(module)
    eval_module: nn.Module = module.eval().requires_grad_(False)
    return eval_module


def complete_outputs(module: Any) -> None:
    """Let Llama 4 with its tower run: in transformers 5.24 it reads a field of its text part's
    output that is not there. A version that has the field, or no such part, stays as it is."""

    def complete(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not hasattr(output, "image_outputs"):
            output.image_outputs = None

    text = getattr(module, "language_model", None)
    if type(module).__name__ == "Llama4ForConditionalGeneration" and text is not None:
        text.register_forward_hook(complete)


def _adapts_text_class(files: ModelFiles) -> bool:
    """Whether an adapter has the names of a class for text alone, if the model has one."""
    adapters = [*files.adapters, *([files.adapter] if files.adapter is not None else [])]
    return any(name.startswith("model.layers.") for a in adapters for name in a.layers)


def _places(config: EngineConfig, device: torch.device) -> dict[str, Any]:
    """Where the weights go, for `from_pretrained`."""
    if config.tensor_parallel > 1:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=config.tensor_parallel)}
    return {"device_map": config.device_map or {"": device}}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Let transformers not warn of missing weights: `_check_report` refuses those that count."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_report(
    name: str, report: dict[str, object], unused: tuple[str, ...] = (), *, is_gguf: bool
) -> None:
    """Refuse missing and mismatched weights: they would be random. Those in `unused` may be.

    Extra weights do no harm in folders, where they are buffers, copies and other heads. A GGUF file
    has only what its model computes with.
    """
    surplus = ("unexpected_keys",) if is_gguf else ()
    for key in ("missing_keys", "mismatched_keys", "error_msgs", *surplus):
        items = report.get(key)
        if not isinstance(items, list | set | tuple):
            continue
        names = [str(item[0] if isinstance(item, tuple) else item) for item in items]
        wrong = sorted(item for item in names if not unused or not item.startswith(unused))
        if wrong:
            raise ModelLoadError(f"{name}: {key.replace('_', ' ')}: {', '.join(wrong[:5])}")


def _dequantised_folder(
    files: ModelFiles, path: Path, dtype: torch.dtype, progress: Progress
) -> Path:
    """The cache folder with a GGUF file's config and its weights as safetensors of `dtype`.

    Its name has a hash of all weights: the name of `files.folder` covers samples of them alone.
    """

    def build(target: Path) -> None:
        progress(f"converting the weights of {path.name} to {name} (once)")
        for source in files.folder.iterdir():
            if source.is_file():
                shutil.copy(source, target / source.name)
        gguf, tower = read_gguf(path), tower_parameters(files)
        write_weights(gguf, files.config, target, dtype, progress, tower)

    name = str(dtype).removeprefix("torch.")
    content = content_hash(files.weights)[:24]
    folder = files.folder.with_name(f"{files.folder.name}-{content}-{name}")
    return fill_once(folder, progress, build)
