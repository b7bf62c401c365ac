"""A failure of the process that checks grammars is no error of a grammar."""

import signal
from unittest.mock import Mock

import pytest

from stonechat_models.child_process import ChildEndedError
from stonechat_models.errors import CostlyGrammarError, EngineError, GrammarError
from stonechat_models.grammar.check_process import ask
from stonechat_models.types import GrammarSpec


def test_the_failure_of_a_check_names_its_cause() -> None:
    process = Mock()
    process.ask.return_value = b'{"error": "ValueError: a bug", "status": -1}'
    with pytest.raises(EngineError, match="a bug") as caught:
        ask(process, GrammarSpec("regex", "a"), 1.0)
    assert not isinstance(caught.value, GrammarError)


def test_only_the_patience_of_the_checker_blames_the_grammar() -> None:
    """The system may kill a process, too, when memory runs out."""
    process = Mock()
    process.ask.side_effect = ChildEndedError(signal.SIGKILL, is_late=True)
    late = ask(process, GrammarSpec("regex", "a"), 1.0)
    assert isinstance(late, CostlyGrammarError)
    assert "too long" in str(late)
    process.ask.side_effect = ChildEndedError(signal.SIGKILL)
    with pytest.raises(EngineError, match="was ended by signal 9") as killed:
        ask(process, GrammarSpec("regex", "a"), 1.0)
    assert not isinstance(killed.value, GrammarError)
