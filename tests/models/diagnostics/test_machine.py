"""The facts about this machine, compared with other sources."""

import os

import psutil
import pytest
import torch
import torch.utils.benchmark

from stonechat_models.diagnostics.bandwidth import measure_bandwidth
from stonechat_models.diagnostics.machine import inspect_machine


def test_the_facts_are_those_of_the_system() -> None:
    machine = inspect_machine(lambda line: None)
    assert machine.usable_cpus == len(os.sched_getaffinity(0))
    assert 1 <= machine.num_cores <= machine.usable_cpus <= machine.num_cpus
    assert machine.total_memory <= psutil.virtual_memory().total
    assert 0 < machine.free_memory <= machine.total_memory
    assert len(machine.gpus) >= torch.cuda.device_count()
    assert machine.torch_version == torch.__version__
    assert (machine.native_isa is None) != (machine.native_refusal is None)


def test_bandwidth_is_of_the_order_of_a_plain_copy() -> None:
    source = torch.ones(2**25)
    target = torch.empty_like(source)
    timer = torch.utils.benchmark.Timer("target.copy_(source)", globals=locals(), num_threads=1)
    copy_bandwidth = 2 * source.nbytes / timer.timeit(5).median
    assert copy_bandwidth / 6 < measure_bandwidth("cpu", num_threads=1) < copy_bandwidth * 6


def test_an_absent_device_raises() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        measure_bandwidth("cuda:99")
