"""Time what a step costs before the model: rank 0 sends the batch, and another rank reads it.

python scripts/bench/rank_messages.py

For steps of several sizes it prints the bytes of the message, the median time of rank 0 to make and
to send it, that of the other rank to read it, and the time until another process has answered.
"""

import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from statistics import median
from time import perf_counter
from typing import Any

import torch

from stonechat_models.backends.transformers.verify import random_batch
from stonechat_models.runtime.ipc import CountFree, FramePipe, RunStep
from stonechat_models.runtime.ranks.messages import read_step, step_message

NUM_STEPS = 2000
CONTEXT = 2048
STEPS = {
    "decode, 1 sequence": [(1, CONTEXT)],
    "decode, 16 sequences": [(1, CONTEXT)] * 16,
    "decode, 128 sequences": [(1, CONTEXT)] * 128,
    "prompt of 512 tokens": [(512, 512)],
    "prompt of 8192 tokens": [(8192, 8192)],
}
"""Tokens of each sequence in the step, and its context."""


def follow(connection: "Connection[Any, Any]") -> None:
    """Read steps as a rank does, and answer each."""
    torch.set_num_threads(1)
    pipe = FramePipe(connection)
    while True:
        message = pipe.receive()
        if not isinstance(message, RunStep):
            return
        read_step(message)
        connection.send_bytes(b"")


def encoded(pipe: FramePipe, batch: Any) -> bytes:
    return pipe.encode(step_message(batch))


def timed(function: Callable[[], object]) -> float:
    """Return the median time of a call in µs."""
    times = []
    for _ in range(NUM_STEPS):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return median(times) * 1e6


def main() -> int:
    torch.set_num_threads(1)
    ours, theirs = Pipe()
    follower = Process(target=follow, args=(theirs,))
    follower.start()
    pipe = FramePipe(ours)
    print(f"{'step':<24}{'bytes':>9}{'make µs':>9}{'read µs':>9}{'answer µs':>11}")
    for name, lengths in STEPS.items():
        batch = random_batch(lengths, 16, vocab_size=1000)
        data = pipe.encode(step_message(batch))
        message = step_message(batch)

        def ask(batch: Any = batch) -> None:
            pipe.send_encoded(pipe.encode(step_message(batch)))
            ours.recv_bytes()

        make = timed(partial(encoded, pipe, batch))
        read = timed(partial(read_step, message))
        print(f"{name:<24}{len(data):>9}{make:>9.0f}{read:>9.0f}{timed(ask):>11.0f}")
    pipe.send(CountFree())
    follower.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
