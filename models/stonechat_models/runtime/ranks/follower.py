"""A rank above 0: `python -m stonechat_models.runtime.ranks.follower FD`.

FD is one end of a pipe from rank 0. The process loads its part of the model, follows the messages,
and ends when the other end of the pipe closes, even while it waits for another rank.
"""

import logging
import os
import select
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.child import load_failure, send_logs
from stonechat_models.runtime.ipc import (
    Allocate,
    CopyBlocks,
    CountFree,
    FramePipe,
    Progress,
    Ready,
    RunStep,
    Start,
)
from stonechat_models.runtime.ranks.followers import PORT_VARIABLE, SECONDS_TO_NOTICE
from stonechat_models.runtime.runner import Died

if TYPE_CHECKING:
    from stonechat_models.backends.transformers.model import TransformersModel

logger = logging.getLogger(__name__)


def main(file_descriptor: int) -> int:
    """Run until rank 0 ends. Return the exit status: 0, or 1 after a failure."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are meant for the server
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(file_descriptor,), daemon=True).start()
    pipe = FramePipe(Connection(file_descriptor))
    try:
        start = pipe.receive()
        assert isinstance(start, Start)
        send_logs(pipe, logging.ERROR)  # rank 0 has the same warnings
        _run(start.config, pipe)
    except (EOFError, OSError):  # rank 0 has ended
        return 0
    return 1


def _end_with(file_descriptor: int) -> None:
    """Wait until the other end of the pipe closes, and end this process."""
    poll = select.poll()
    poll.register(file_descriptor, 0)  # only that it is closed
    poll.poll()
    os._exit(0)


def _run(config: EngineConfig, pipe: FramePipe) -> None:
    """Load the model and follow the messages until something fails."""
    is_loading = True
    try:
        model = _load(config, pipe)
        pipe.send(Ready(model.info, ""))
        is_loading = False
        while True:
            _follow(model, pipe)
    except (EOFError, OSError):
        raise
    except Exception as error:
        time.sleep(SECONDS_TO_NOTICE)  # if the end of another rank is the reason, that is reported
        if is_loading or isinstance(error, ModelLoadError):
            pipe.send(load_failure(error))
        else:
            logger.error("a step failed", exc_info=error)
            pipe.send(Died(f"a step failed on rank {os.environ['RANK']}: {error}"))


def _load(config: EngineConfig, pipe: FramePipe) -> "TransformersModel":
    import torch

    import stonechat_models.backends.transformers.loading.load  # noqa: F401
    from stonechat_models.checkpoint.resolve import resolve_model
    from stonechat_models.runtime.ranks.group import find_store, join_group
    from stonechat_models.runtime.ranks.parallel_model import load_part

    def progress(line: str) -> None:
        pipe.send(Progress(line))

    rank, num_ranks = int(os.environ["RANK"]), config.tensor_parallel
    device = torch.device(config.device)
    store = find_store(int(os.environ[PORT_VARIABLE]), num_ranks)
    join_group(store, rank, num_ranks, device)
    files = resolve_model(config, progress)
    return load_part(files, config, device, progress)


def _follow(model: "TransformersModel", pipe: FramePipe) -> None:
    """Do what the next message says."""
    from stonechat_models.runtime.ranks.group import least_free_memory, wait_for_all
    from stonechat_models.runtime.ranks.messages import read_step

    match pipe.receive():
        case RunStep() as message:
            model.forward(read_step(message).to(model.device))
        case CopyBlocks(pairs):
            model.copy_blocks(list(pairs))
        case Allocate(num_blocks, block_size):
            model.allocate_kv_cache(num_blocks, block_size)
            wait_for_all()
        case CountFree():
            least_free_memory(model.device)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
