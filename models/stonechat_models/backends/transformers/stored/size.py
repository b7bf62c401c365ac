"""Compares the size of a model, as its config.json describes it, with that of its files."""

from typing import Any

from stonechat_models.backends.transformers.kinds import empty_module
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import ModelLoadError

MAX_WEIGHTS_PER_BYTE = 8
"""No format stores a weight in less than a bit."""
MAX_TABLES = 1 << 28
"""How many numbers the buffers of any model may have."""


def refuse_oversized(files: ModelFiles, model_class: Any) -> None:
    """Raise `ModelLoadError` if the config implies more weights than the files can hold.

    Buffers, such as tables of positions, count too, as far as they are large.

    transformers would allocate and fill them all, and only then report that they do not match.
    """
    try:
        module = empty_module(files.config, model_class)
    except Exception:  # the load itself reports it, with its own message
        return
    if module is None:
        return
    implied = sum(parameter.numel() for parameter in module.parameters())
    stored = sum(path.stat().st_size for path in files.weights)
    tables = sum(buffer.numel() for buffer in module.buffers())
    if tables > MAX_TABLES + MAX_WEIGHTS_PER_BYTE * stored:
        raise ModelLoadError(
            f"{files.name}: its config.json describes tables of {tables} numbers, beside files of "
            f"{stored} bytes; download it again"
        )
    if implied > MAX_WEIGHTS_PER_BYTE * stored:
        raise ModelLoadError(
            f"{files.name}: its config.json describes {implied} weights, which are more than its "
            f"files of {stored} bytes can hold; download it again"
        )
