"""The process that checks grammars: `python -m stonechat_models.grammar.check_worker`.

A task is one check as JSON: the `kind` and `source` of a grammar, and the CPU time `seconds` that
the check may take. The process forks for each check, and answers with JSON: `error`, a text or
null, and `status`, 0 or the signal at which the check ended: SIGPROF at the end of its time,
SIGABRT without memory, SIGSEGV without stack. A negative `status` means that the check itself has
failed; `error` says why. The module imports no tensors.
"""

import json
import os
import resource
import signal
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from stonechat_models.child_process import limit, limit_growth, serve_tasks
from stonechat_models.errors import GrammarError
from stonechat_models.grammar.source import check_grammar, is_limit, limits, reason, to_llguidance
from stonechat_models.types import GrammarSpec

MEMORY_BYTES = 128 * 2**20
"""What a check may add to the size of the process."""
STACK_BYTES = 2 * 2**20
"""A quarter of what the threads that compile grammars usually have."""
NICENESS = 10
PADDED_VOCAB = 2**19
"""More tokens than any vocabulary has, because a grammar may name tokens by their ids."""


class _Bytes:
    """A vocabulary of single bytes, an end token, and special tokens without text."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes((i,)) for i in range(256)), b"<eos>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Check grammars until the input ends."""
    os.nice(NICENESS)
    tokenizer = LLTokenizer(_Bytes(), n_vocab=PADDED_VOCAB, eos_token=[_Bytes.eos_token_id])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_STACK, STACK_BYTES)
    limit_growth(MEMORY_BYTES)
    serve_tasks(lambda task: json.dumps(_check(json.loads(task), tokenizer)).encode())


def _check(task: dict[str, Any], tokenizer: LLTokenizer) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.setitimer(signal.ITIMER_PROF, task["seconds"])
            error = _error(GrammarSpec(task["kind"], task["source"]), tokenizer)
            os.write(writer, json.dumps(error).encode())
            os._exit(0)
        except MemoryError:
            os.abort()
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}"[:1000]).encode())
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"error": json.loads(text) if status >= 0 and text else None, "status": -status}


def _error(spec: GrammarSpec, tokenizer: LLTokenizer) -> str | None:
    """Why the grammar cannot be compiled. A mask is computed too, as the engine will do."""
    try:
        check_grammar(spec)
    except GrammarError as error:
        return str(error)
    matcher = LLMatcher(tokenizer, to_llguidance(spec), limits=limits(), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    # Other errors may come from the vocabulary, which is not the model's.
    message = matcher.get_error() if matcher.is_error() else ""
    return reason(message) if is_limit(message) else None


if __name__ == "__main__":
    main()
