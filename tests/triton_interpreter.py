"""Makes Triton's interpreter several times as fast."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def speed_up() -> None:
    _replace_language_once()
    builder = interpreter.interpreter_builder
    # A sum of integers that overflows shows in the results, and no device looks for one.
    builder.options = replace(builder.options, sanitize_overflow=False)


def _replace_language_once() -> None:
    """Let a launch replace the functions of Triton's language, and no function that it calls.

    The interpreter looks through the whole language again whenever a kernel calls a function. There
    is nothing left to replace by then: `tl` is replaced for the launch, and what a function of
    `tl.core` has replaced stays so.
    """
    replace_all = interpreter._patch_lang

    @cache
    def languages(function: Callable[..., Any]) -> list[ModuleType]:
        return [v for v in function.__globals__.values() if v is tl or v is tl.core]

    def replace_once(function: Callable[..., Any]) -> Any:
        if any(tl.core.is_builtin(language.arange) for language in languages(function)):
            return replace_all(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = replace_once
