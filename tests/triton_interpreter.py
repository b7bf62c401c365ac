"""Makes Triton's interpreter several times as fast."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def speed_up() -> None:
    _replace_language_once()
    _call_functions_directly()
    _keep_types()
    _compare_types_quickly()
    _skip_checks_of_equal_types()
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
            self._sizes = tuple(getattr(size, "value", size) for size in shape)
            self._others = {element.name: self}

    def with_element(self: Any, element: Any) -> Any:
        found = self._others.get(element.name)
        if found is None or found.element_ty != element:
            found = self._others[element.name] = tl.block_type(element, self.shape)
        return found

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
    tl.block_type.with_element_ty = with_element
    tl.tensor.__init__ = init_from_kept
    interpreter._get_np_dtype = numpy_type


def _compare_types_quickly() -> None:
    """Look at the content of types and of constants only where the objects differ."""
    equals, unwrap = tl.dtype.__eq__, tl.core._unwrap_if_constexpr
    semantic = interpreter.TritonSemantic
    computation_type = semantic.computation_type_impl
    plain = {tl.tensor, tl.dtype, int, float, bool, str, type(None)}
    results: dict[tuple[Any, ...], Any] = {}

    def are_equal(self: Any, other: Any) -> Any:
        return self is other or equals(self, other)

    def unwrapped(value: Any) -> Any:
        return value if type(value) in plain else unwrap(value)

    def computed(self: Any, left: Any, is_left: bool, right: Any, *rest: bool) -> Any:
        key = (left.name, is_left, right.name, *rest)
        found = results.get(key)
        if found is None:
            found = results[key] = computation_type(self, left, is_left, right, *rest)
        return found

    tl.dtype.__eq__, tl.core._unwrap_if_constexpr = are_equal, unwrapped
    semantic.computation_type_impl = computed


def _skip_checks_of_equal_types() -> None:
    """Convert nothing where both sides have one type, and broadcast nothing of one shape."""
    semantic, tensor, make = interpreter.TritonSemantic, tl.tensor, interpreter.TensorHandle
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value

    def check_others(
        self: Any,
        left: Any,
        right: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        if type(left) is tensor and type(right) is tensor and left.dtype is right.dtype:
            is_exact = not div_or_mod or left.dtype.primitive_bitwidth >= 32
            if is_exact and not left.dtype.is_ptr():
                return broadcast_others(self, left, right)
        allowed = (allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)
        return check(self, left, right, *allowed)

    def broadcast_others(self: Any, left: Any, right: Any) -> Any:
        sizes = [getattr(side.type, "_sizes", ()) for side in (left, right)]
        if sizes[0] == sizes[1]:
            return left, right
        if sizes[0] and not sizes[1]:
            return left, splat(right, left.type)
        if sizes[1] and not sizes[0]:
            return splat(left, right.type), right
        rank = max(map(len, sizes))
        first, second = ((1,) * (rank - len(size)) + size for size in sizes)
        if any(a != b and a != 1 and b != 1 for a, b in zip(first, second, strict=True)):
            return broadcast(self, left, right)
        shape = tuple(map(max, first, second))
        return widened(left, first, shape), widened(right, second, shape)

    def widened(side: Any, size: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        if side.type._sizes == shape:
            return side
        values = np.broadcast_to(side.handle.data.reshape(size), shape)
        element = side.type.element_ty
        return tensor(make(values, side.handle.dtype.scalar), tl.block_type(element, [*shape]))

    def splat(scalar: Any, like: Any) -> Any:
        kind, values = like.with_element_ty(scalar.type), scalar.handle.data
        filled = np.empty(like._sizes, values.dtype)
        filled[...] = values
        return tensor(make(filled, scalar.handle.dtype.scalar), kind)

    semantic.binary_op_type_checking_impl = check_others
    semantic.broadcast_impl_value = broadcast_others
