"""The process that reads PDF files: `python -m stonechat_models.media.document.worker`.

A task is a `Task`, an answer an `Answer`, both in MessagePack. A signal ends the process if a file
takes too much time.
"""

import os
import resource
import signal

import msgspec

from stonechat_models.child_process import limit, limit_growth, serve_tasks
from stonechat_models.media.document.pdf import read_pdf
from stonechat_models.media.records import Answer, DocumentOptions, Task, UnusableMediaError
from stonechat_models.model_file import reason_of

MEMORY_BYTES = 1 << 30
"""What the work on one file may add to the size of the process."""
CPU_SECONDS = 20.0
"""The processor time that one file may take."""
NICENESS = 5


def answer(data: bytes) -> bytes:
    """Read a document."""
    task = msgspec.msgpack.decode(data, type=Task)
    assert isinstance(task.options, DocumentOptions)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        result = Answer(prepared=read_pdf(task.data, task.options))
    except UnusableMediaError as error:
        result = Answer(kind=error.kind, reason=error.reason)
    except MemoryError:
        result = Answer(kind="too_large", reason="takes too much memory to read")
    except Exception as error:  # of numbers that the library does not take, for example
        result = Answer(kind="broken", reason=f"cannot be read: {reason_of(error)}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    return msgspec.msgpack.encode(result)


def main() -> None:
    """Read files until the input ends."""
    os.nice(NICENESS)
    limit(resource.RLIMIT_CORE, 0)
    limit_growth(MEMORY_BYTES)
    serve_tasks(answer)


if __name__ == "__main__":
    main()
