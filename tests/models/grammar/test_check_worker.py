"""The process that checks grammars tells the limits apart from its own failures."""

import faulthandler
import signal
from unittest.mock import Mock

import pytest

from stonechat_models.grammar import check_worker


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ValueError("a bug"), {"error": "ValueError: a bug", "status": -1}),
        (MemoryError(), {"error": None, "status": signal.SIGABRT}),
    ],
)
def test_a_bug_in_a_check_is_not_called_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, error: Exception, answer: dict[str, object]
) -> None:
    def fail(*_: object) -> None:
        faulthandler.disable()  # in the child, which aborts
        raise error

    monkeypatch.setattr(check_worker, "_error", fail)
    task = {"kind": "regex", "source": "a", "seconds": 100.0}
    assert check_worker._check(task, Mock()) == answer
