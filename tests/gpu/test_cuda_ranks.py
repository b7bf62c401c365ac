"""The process group of a model that several devices share, as far as one device shows it."""

import subprocess
import sys

CODE = """
import torch
import torch.distributed as dist
from stonechat_models.runtime.ranks.group import (
    join_group, least_free_memory, open_store, wait_for_all
)

device = torch.device("{device}")
store, _ = open_store(1)
join_group(store, 0, 1, device)
wait_for_all()
assert 0 < least_free_memory(device)
numbers = torch.arange(8.0, device=device)
dist.all_reduce(numbers)
gathered = [torch.empty_like(numbers)]
dist.all_gather(gathered, numbers)
assert gathered[0].tolist() == list(range(8))
dist.destroy_process_group()
print("done")
"""


def test_a_group_of_one_rank_computes_through_nccl(device):
    """Two ranks need two devices."""
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(device=device)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split()[-1] == "done"
