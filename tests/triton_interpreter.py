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
    _call_functions_directly()
    _keep_types()
    _leave_equal_shapes()
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


def _call_functions_directly() -> None:
    """Call a function of the language without the wrapper that looks for `_semantic`."""

    def replace_one(place: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        function = getattr(member, "__wrapped__", member)

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = interpreter.interpreter_semantic
            return function(*args, **kwargs)

        scope.set_attr(place, name, call)

    interpreter._patch_attr = replace_one


def _keep_types() -> None:
    """Make each type of a block once, and keep what follows from a type.

    Each operation of a kernel makes several tensors, and each of them made all of these again.
    """
    init_block, init_tensor = tl.block_type.__init__, tl.tensor.__init__
    numpy_of = interpreter._get_np_dtype
    blocks: dict[tuple[Any, ...], Any] = {}

    def new_block(block_class: Any, element: Any, shape: Any, *_: Any) -> Any:
        key = (block_class, element.name, *(getattr(size, "value", size) for size in shape))
        found = blocks.get(key)
        if found is None or found.element_ty != element:
            found = blocks[key] = object.__new__(block_class)
        return found

    def init_new_block(self: Any, element: Any, shape: Any) -> None:
        if "name" not in vars(self):
            init_block(self, element, shape)

    def init_from_kept(self: Any, handle: Any, type: Any) -> None:
        known = vars(type).get("_of_tensors")
        if known is None:
            init_tensor(self, handle, type)
            type._of_tensors = {n: getattr(self, n) for n in ("shape", "numel", "type", "dtype")}
        else:
            vars(self).update(known, handle=handle)

    def numpy_type(type: Any) -> Any:
        found = vars(type).get("_numpy_type")
        if found is None:
            found = type._numpy_type = numpy_of(type)
        return found

    tl.block_type.__new__, tl.block_type.__init__ = new_block, init_new_block
    tl.tensor.__init__ = init_from_kept
    interpreter._get_np_dtype = numpy_type


def _leave_equal_shapes() -> None:
    """Broadcast nothing where both sides have one shape already."""
    semantic = interpreter.TritonSemantic
    broadcast = semantic.broadcast_impl_value

    def broadcast_others(self: Any, left: Any, right: Any) -> Any:
        sizes, others = ([size.value for size in side.shape] for side in (left, right))
        return (left, right) if sizes == others else broadcast(self, left, right)

    semantic.broadcast_impl_value = broadcast_others
