"""Spreads memory over the nodes of a machine whose processors have memory of their own (NUMA).

Each page of the weights and of the KV cache then lies on the next node, so that all threads read at
the bandwidth of all nodes together, wherever they run.
"""

import ctypes
import os
import platform
from pathlib import Path

NODES = Path("/sys/devices/system/node/has_memory")
STATUS = Path("/proc/self/status")
DEFAULT, INTERLEAVE = 0, 3
MASK_BITS = 1024
GET_POLICY = {"x86_64": 239, "aarch64": 236}
SET_POLICY = {"x86_64": 238, "aarch64": 237}


def memory_nodes(nodes: Path = NODES, status: Path = STATUS) -> tuple[int, ...]:
    """Return the numbers of the nodes whose memory this process may use. Empty: not known."""
    try:
        present = _numbers(nodes.read_text())
        lines = status.read_text().splitlines()
        allowed = next(line for line in lines if line.startswith("Mems_allowed_list:"))
        return tuple(sorted(present & _numbers(allowed.partition(":")[2])))
    except (OSError, ValueError, StopIteration):
        return ()


def interleave_memory(nodes: tuple[int, ...]) -> bool:
    """Let the calling thread, and threads that it starts, take memory from the nodes in turn.

    Returns whether it does. It does not if there is one node, if the process was started with a
    policy (numactl), or if the system refuses.
    """
    machine = platform.machine()
    if len(nodes) < 2 or machine not in SET_POLICY or memory_policy() != DEFAULT:
        return False
    return set_policy(INTERLEAVE, nodes)


def memory_policy() -> int | None:
    """Return the policy of the calling thread, or None if it is not known."""
    policy = ctypes.c_int()
    number = GET_POLICY.get(platform.machine())
    if number is None or not hasattr(os, "sched_getaffinity"):  # only Linux has the call
        return None
    return policy.value if _system_call(number, ctypes.byref(policy), None, 0, None, 0) else None


def set_policy(policy: int, nodes: tuple[int, ...]) -> bool:
    """Set the policy of the calling thread, and return whether the system took it."""
    mask = (ctypes.c_ulong * (MASK_BITS // 64))()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    return _system_call(SET_POLICY[platform.machine()], policy, mask, MASK_BITS)


def _system_call(number: int, *arguments: object) -> bool:
    result: int = ctypes.CDLL(None).syscall(ctypes.c_long(number), *arguments)
    return result == 0


def _numbers(text: str) -> set[int]:
    """The numbers of a list like `0-2,5`."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part.strip())
    return {i for first, _, last in ranges for i in range(int(first), int(last or first) + 1)}
