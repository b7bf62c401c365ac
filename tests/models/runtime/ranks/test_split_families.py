"""Every type that may be split gives the logits of the whole model, through the paged KV cache."""

import os
import socket
import subprocess
import sys

import pytest

from stonechat_models.runtime.ranks.split_types import SPLIT_TYPES
from tests.models.every_family import TYPES

NUM_PARTS = 4


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_types_that_may_be_split_give_the_logits_of_the_whole(tmp_path, part):
    known = sorted(SPLIT_TYPES.intersection(TYPES))[part::NUM_PARTS]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.models.runtime.ranks.split_families"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *filter(None, sys.path)])}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(port), str(tmp_path), *known],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output, _ = ranks[0].communicate(timeout=600)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    verdicts = dict(line.split("\t") for line in output.splitlines() if "\t" in line)
    assert verdicts == dict.fromkeys(known, "ok")
