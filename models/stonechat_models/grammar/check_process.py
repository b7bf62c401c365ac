"""Asks the process that checks grammars (see `check_worker`), and says what its end means."""

import json
import signal
from typing import Any

from stonechat_models.child_process import ChildClosedError, ChildEndedError, ChildProcess
from stonechat_models.errors import CostlyGrammarError, EngineDeadError, EngineError, GrammarError
from stonechat_models.grammar.check_worker import MEMORY_BYTES
from stonechat_models.types import GrammarSpec

PATIENCE_SECONDS = 30.0
"""The time that a check may take, the start of its process included, if processors are busy."""


def ask(process: ChildProcess, spec: GrammarSpec, seconds: float) -> GrammarError | None:
    """Check a grammar within `seconds` of CPU time, in a process that runs `check_worker`.

    Raises `EngineError` if it cannot be checked.
    """
    task = {"kind": spec.kind, "source": spec.source, "seconds": seconds}
    try:
        data = process.ask(json.dumps(task).encode(), PATIENCE_SECONDS)
    except ChildClosedError:
        raise EngineDeadError("no more grammars are checked") from None
    except ChildEndedError as ended:
        status = signal.SIGPROF if ended.is_late else ended.signal or -1
        answer: dict[str, Any] = {"error": None, "status": status}
    else:
        answer = json.loads(data)
    if answer["status"] > 0:
        return CostlyGrammarError(_excess(answer["status"], seconds))
    if answer["status"] < 0:
        raise EngineError(answer["error"] or "the process that checks grammars has ended")
    return None if answer["error"] is None else GrammarError(answer["error"])


def _excess(number: int, seconds: float) -> str:
    """The limit at which signal `number` ends a check. Raises `EngineError` if it is none."""
    match number:
        case signal.SIGPROF:
            return f"it takes too long to compile (the limit is {seconds:g} s)"
        case signal.SIGABRT:
            megabytes = MEMORY_BYTES // 2**20
            return f"it takes too much memory to compile (the limit is {megabytes} MiB)"
        case signal.SIGSEGV | signal.SIGBUS:
            return "it is nested too deeply"
    raise EngineError(f"a process that checks grammars was ended by signal {number}")
