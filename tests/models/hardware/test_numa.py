"""Memory is spread over the nodes of a machine. Machines with several nodes are faked."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stonechat_models.hardware import numa


def nodes_of(folder: Path, has_memory: str, allowed: str) -> tuple[int, ...]:
    nodes, status = folder / "has_memory", folder / "status"
    nodes.write_text(f"{has_memory}\n")
    status.write_text(f"Name:\tpython\nMems_allowed_list:\t{allowed}\n")
    return numa.memory_nodes(nodes, status)


@pytest.mark.parametrize(
    ("has_memory", "allowed", "expected"),
    [
        ("0", "0", (0,)),
        ("0-1", "0-1", (0, 1)),
        ("0-2,5", "0-63", (0, 1, 2, 5)),
        ("0-7", "2-3,6", (2, 3, 6)),
        ("", "0", ()),
        ("all", "0", ()),
    ],
)
def test_the_nodes(
    tmp_path: Path, has_memory: str, allowed: str, expected: tuple[int, ...]
) -> None:
    assert nodes_of(tmp_path, has_memory, allowed) == expected


def test_a_system_without_nodes(tmp_path: Path) -> None:
    assert numa.memory_nodes(tmp_path / "missing") == ()


def in_a_thread(run: Callable[[], None]) -> None:
    """The policy belongs to a thread, so no other test sees it."""
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_memory_is_interleaved_unless_there_is_one_node_or_a_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if numa.memory_policy() != numa.DEFAULT:
        pytest.skip("the system has no memory policies, or this process has one")
    calls: list[tuple[int, tuple[int, ...]]] = []

    def set_policy(policy: int, nodes: tuple[int, ...]) -> bool:
        calls.append((policy, nodes))
        return True

    monkeypatch.setattr(numa, "set_policy", set_policy)
    assert not numa.interleave_memory(())
    assert not numa.interleave_memory((0,))
    assert numa.interleave_memory((0, 2))
    monkeypatch.setattr(numa, "memory_policy", lambda: numa.INTERLEAVE)
    assert not numa.interleave_memory((0, 2))
    assert calls == [(numa.INTERLEAVE, (0, 2))]


def test_the_system_takes_the_policy() -> None:
    nodes = numa.memory_nodes()
    if numa.memory_policy() != numa.DEFAULT or not nodes:
        pytest.skip("the system has no memory policies, or this process has one")
    policies: list[int | None] = []

    def run() -> None:
        if not numa.set_policy(numa.INTERLEAVE, nodes):
            return
        policies.append(numa.memory_policy())
        inner = threading.Thread(target=lambda: policies.append(numa.memory_policy()))
        inner.start()
        inner.join()

    in_a_thread(run)
    if not policies:
        pytest.skip("the system refuses to set a policy")
    assert policies == [numa.INTERLEAVE, numa.INTERLEAVE]
    assert numa.memory_policy() == numa.DEFAULT
