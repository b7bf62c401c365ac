"""Kernels are launched early only on devices that can, and not if it is switched off."""

import pytest
import torch

pytest.importorskip("triton")

import triton

from stonechat_models.hardware.dependent_launch import (
    VARIABLE,
    launch_settings,
    launches_early,
)

CUDA = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """A card whose compute capability the test sets, and kernels that are compiled."""

    def set_capability(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.delenv(VARIABLE, raising=False)
    set_capability(9, 0)
    launch_settings.cache_clear()
    yield set_capability
    launch_settings.cache_clear()


@pytest.mark.parametrize(
    ("capability", "is_early"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)]
)
def test_by_compute_capability(card, capability, is_early):
    card(*capability)
    assert launches_early(CUDA) is is_early
    expected = {"EARLY": True, "launch_pdl": True} if is_early else {"EARLY": False}
    assert launch_settings(CUDA) == expected


def test_switched_off(card, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    assert launch_settings(CUDA) == {"EARLY": False}
    launch_settings.cache_clear()
    monkeypatch.setenv(VARIABLE, "1")
    assert launch_settings(CUDA)["EARLY"] is True


def test_elsewhere(card, monkeypatch):
    assert launch_settings(torch.device("cpu")) == {"EARLY": False}
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        assert not launches_early(CUDA)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert not launches_early(CUDA)
