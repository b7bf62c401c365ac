"""Decides whether a model's quantised weights stay as they are stored, and reads them."""

import logging
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.quantization.codes.gguf_codes import GGUF_TYPES
from stonechat_models.backends.transformers.attention.choose import why_no_triton
from stonechat_models.backends.transformers.kinds import empty_module
from stonechat_models.backends.transformers.stored.codes import (
    CodedParts,
    as_weights,
    has_expert_codes,
    is_expert_code,
    read_codes,
    read_expert_codes,
)
from stonechat_models.backends.transformers.stored.groups import (
    has_groups,
    names_in_groups,
    read_groups,
)
from stonechat_models.backends.transformers.stored.size import refuse_oversized
from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.checkpoint.headers import ModelHeaders
from stonechat_models.checkpoint.packed.folder import read_packing
from stonechat_models.checkpoint.packed.tensors import Packing
from stonechat_models.checkpoint.resolve import ModelFiles, tower_parameters
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_file import reading, reason_of

logger = logging.getLogger(__name__)


def can_keep_codes(files: ModelFiles, config: EngineConfig, device: torch.device) -> bool:
    """Whether the settings leave weights as stored, on a device whose kernels multiply them."""
    return (
        settings_keep_codes(config, device)
        and files.adapter is None
        and (files.gguf is not None or has_expert_codes(files) or has_groups(read_packing(files)))
    )


def settings_keep_codes(config: EngineConfig, device: torch.device) -> bool:
    """Whether weights stay as stored, if the model has any that can."""
    return (
        device.type == "cuda"
        and config.quantize == "auto"
        and not config.deterministic
        and config.device_map is None
        and why_no_triton(device) is None
    )


def kept_names(model: ModelHeaders, packing: Packing, empty: nn.Module) -> frozenset[str]:
    """The names of the weights that can stay as stored.

    `packing` is that of `model`, and `empty` its module on the meta device.
    """
    if model.weight_format == "gguf":
        vision = tower_parts(empty)  # it becomes floats
        tower = tuple(f"{name}." for name, part in empty.named_modules() if part in vision)
        kept = (t.name for t in model.tensors if t.type_name in GGUF_TYPES)
        return frozenset(name for name in kept if not name.startswith(tower))
    experts = frozenset(t.name for t in packing.tensors.values() if is_expert_code(t))
    return experts or names_in_groups(packing, empty)


def read_kept_codes(
    files: ModelFiles,
    model_class: Any,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> CodedParts:
    """The weights that stay quantised; none, with a line that says why, if a product is wrong.

    The same holds if the kernels cannot be compiled or run here, as without a C compiler.
    Raises `ModelLoadError` for files that cannot be read, and if there is not enough memory.
    """
    with reading(files.name), torch.inference_mode(False):
        refuse_oversized(files, model_class)
        empty = empty_module(files.config, model_class)
        if empty is None:
            return CodedParts()
        try:
            if files.gguf is not None:
                gguf = read_gguf(files.gguf)
                codes = read_codes(gguf, files.config, empty, dtype, device, progress)
                codes.weights |= as_weights(tower_parameters(files), dtype)
                return codes
            if has_expert_codes(files):
                return read_expert_codes(files, empty, dtype, device)
            return read_groups(files, empty, dtype, device, progress)
        except UnsupportedModelError as error:
            reason = str(error)
        except (ModelLoadError, torch.OutOfMemoryError):  # floats would take even more memory
            raise
        except Exception as error:  # after any other error, floats work
            logger.warning("the kernels of quantised weights failed", exc_info=error)
            reason = reason_of(error)
    progress(f"weights are dequantised: {reason}")
    return CodedParts()
