"""A failure of the process that checks grammars is no error of a grammar."""

from unittest.mock import Mock

import pytest

from stonechat_models.errors import EngineError, GrammarError
from stonechat_models.grammar.check_process import CheckProcess
from stonechat_models.types import GrammarSpec


def test_the_failure_of_a_check_names_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Mock()
    process.ask.return_value = b'{"error": "ValueError: a bug", "status": -1}'
    checked = CheckProcess()
    monkeypatch.setattr(checked, "_process", process)
    with pytest.raises(EngineError, match="a bug") as caught:
        checked.check(GrammarSpec("regex", "a"), 1.0)
    assert not isinstance(caught.value, GrammarError)
