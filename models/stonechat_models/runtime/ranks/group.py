"""The process group of all ranks: how they meet, and what they find out together."""

import os
import socket
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from stonechat_models.hardware.device import free_memory

Store = Any
"""A `torch.distributed.Store`, which has no types."""
HOST = "127.0.0.1"
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
TIMEOUT = timedelta(hours=2)
"""Ranks wait for each other while they load. The end of a rank is noticed at once, otherwise."""


def rank_environment(rank: int, num_ranks: int, device: torch.device) -> dict[str, str]:
    """Return the environment variables of a rank, some of which transformers reads.

    Ranks are on one machine. Gloo talks over its loopback interface only.
    """
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {name: str(value) for name, value in names.items()}
    environment["GLOO_SOCKET_IFNAME"] = loopback
    if device.type == "cpu":  # transformers takes the accelerator if it sees one
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def open_store(num_ranks: int) -> tuple[Store, int]:
    """Open the place where ranks meet. Return it, and its port on the loopback interface."""
    listener = socket.create_server((HOST, 0), backlog=num_ranks)
    port = int(listener.getsockname()[1])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        HOST,
        port,
        num_ranks,
        is_master=True,
        wait_for_workers=False,
        timeout=TIMEOUT,
        master_listen_fd=listener.detach(),  # by itself it would listen on all interfaces
    )
    return store, port


def find_store(port: int, num_ranks: int) -> Store:
    """Return the place that rank 0 has opened."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        HOST, port, num_ranks, is_master=False, timeout=TIMEOUT
    )


def join_group(store: Store, rank: int, num_ranks: int, device: torch.device) -> None:
    """Wait for all ranks, and become one of them. Random numbers are then the same in each rank."""
    os.environ.update(rank_environment(rank, num_ranks, device))
    if device.type == "cuda":  # NCCL talks for the current one
        torch.cuda.set_device(device)
    dist.init_process_group(
        BACKENDS[device.type],
        store=store,
        rank=rank,
        world_size=num_ranks,
        timeout=TIMEOUT,
    )
    torch.manual_seed(0)


def least_free_memory(device: torch.device) -> int:
    """Return how many bytes every rank may use. All ranks call this. On a CPU they share them."""
    if device.type == "cuda":  # what a step has used is free again
        torch.cuda.empty_cache()
    free = free_memory(device)
    if device.type == "cpu":
        free //= dist.get_world_size()
    least = torch.tensor([free])
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def wait_for_all() -> None:
    """Wait until all ranks call this."""
    dist.all_reduce(torch.zeros(1))
