"""Recognises GPTQ and AWQ, which have tensors of the same names."""

from math import prod

from stonechat_models.checkpoint.packed.integers import Awq, Gptq
from stonechat_models.checkpoint.packed.layouts import GROUP, block_size, group_index
from stonechat_models.checkpoint.packed.stored import StoredTensors, check_fit, integer_type
from stonechat_models.checkpoint.packed.tensors import PackedTensor
from stonechat_models.errors import UnsupportedModelError


def gptq_or_awq(stored: StoredTensors, base: str) -> PackedTensor:
    """Return the weight of the layer `base`. Raises what `find_packed` raises."""
    stored.refuse_words(f"{base}.qweight")
    if stored.method.name == "gptq":
        return _gptq(stored, base)
    if stored.method.name == "awq":
        return _awq(stored, base)
    raise UnsupportedModelError(
        "its weights are in the GPTQ or AWQ format, and its config.json does not say which; "
        "choose another version of the model"
    )


def _gptq(stored: StoredTensors, base: str) -> PackedTensor:
    parts = {role: f"{base}.{role}" for role in ("qweight", "qzeros", "scales")}
    parts = stored.parts(parts, {"g_idx": f"{base}.g_idx"})
    words, zeros, scales = (
        stored.headers[parts[role]].shape for role in ("qweight", "qzeros", "scales")
    )
    check_fit(len(words) == len(zeros) == len(scales) == 2)
    n, num_groups = words[1], scales[0]
    bits = next(
        (b for b in (stored.method.bits_of(base), 2, 3, 4, 8) if -(-n * b // 32) == zeros[1]), 0
    )
    check_fit(bits > 0 and scales[1] == n and zeros[0] == num_groups)
    k = words[0] * 32 // bits
    if "g_idx" in parts:
        k = prod(stored.headers[parts["g_idx"]].shape)
    check_fit(k > 0 and -(-k * bits // 32) == words[0])
    offset = 0 if stored.method.stored_form == "gptq_v2" else 1
    layout = Gptq(bits, stored.method.group_size_of(base), offset, k)
    type_name = _gptq_type(stored, layout, parts, num_groups, n)
    run = block_size(k, num_groups, layout.group_size)
    return PackedTensor(f"{base}.weight", type_name, (n, k), parts, layout, run=run)


def _gptq_type(
    stored: StoredTensors, layout: Gptq, parts: dict[str, str], num_groups: int, n: int
) -> str:
    """Decide by the config, and by the data if it can be read."""
    is_regular = num_groups == 1 or not stored.method.keys.read("desc_act", bool, False)
    is_symmetric = stored.method.keys.read("sym", bool, False)
    if stored.read is not None:
        size = layout.group_size
        order = {"g_idx": stored.read(parts["g_idx"])} if "g_idx" in parts else {}
        runs = group_index({}, layout.k, num_groups, size)
        is_regular = bool((group_index(order, layout.k, num_groups, size) == runs).all())
        zeros = layout.zeros(stored.read(parts["qzeros"]), n)
        is_symmetric = is_symmetric and bool((zeros == 8).all())
    run = block_size(layout.k, num_groups, layout.group_size)
    return integer_type(layout.bits, is_regular and run % GROUP == 0, is_symmetric)


def _awq(stored: StoredTensors, base: str) -> PackedTensor:
    roles = ("qweight", "qzeros", "scales")
    parts = stored.parts({role: f"{base}.{role}" for role in roles}, {})
    words, zeros, scales = (stored.headers[parts[role]].shape for role in roles)
    check_fit(len(words) == len(zeros) == len(scales) == 2)
    k, n = words[0], words[1] * 8
    check_fit(scales[1] == n and zeros == (scales[0], words[1]))
    size = stored.method.group_size_of(base)
    run = block_size(k, scales[0], size)
    type_name = integer_type(4, run % GROUP == 0, False)
    return PackedTensor(f"{base}.weight", type_name, (n, k), parts, Awq(size), run=run)
