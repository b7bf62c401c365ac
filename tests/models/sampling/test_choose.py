"""Which sampler a device gets. The kernels run in Triton's interpreter where there is no GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.errors import ModelLoadError
from stonechat_models.sampling import choose
from stonechat_models.sampling.choose import (
    check_states,
    checked_sampler,
    choose_sampler,
    differences,
)
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.sampling.state import SampledTokens, SamplingState
from stonechat_models.sampling.triton import sampler as triton_sampler
from stonechat_models.sampling.triton.sampler import TritonSampler
from stonechat_models.types import SamplingParams, TokenLogprobs

CUDA = torch.device("cuda", 0)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_a_cpu_has_the_plain_sampler() -> None:
    assert isinstance(choose_sampler(300, torch.device("cpu")), Sampler)


def test_the_kernels_pass_the_check() -> None:
    sampler = checked_sampler(300, DEVICE, Sampler(300, DEVICE))
    assert isinstance(sampler, TritonSampler)


def test_logits_of_half_precision_are_checked_and_read_as_they_are() -> None:
    """Unless a row is to be edited."""
    sampler = checked_sampler(300, DEVICE, Sampler(300, DEVICE), torch.bfloat16)
    assert isinstance(sampler, TritonSampler)
    assert set(sampler._launchers) == {torch.float32, torch.bfloat16}


def test_without_triton_it_is_plain_and_a_line_says_why() -> None:
    lines: list[str] = []
    sampler = choose_sampler(300, CUDA, lambda _: "Triton is not installed", lines.append)
    assert isinstance(sampler, Sampler)
    assert lines == ["sampling in plain PyTorch: Triton is not installed"]


@pytest.mark.parametrize("error", [RuntimeError("out of registers\nptxas …"), ValueError()])
def test_kernels_that_do_not_compile_are_not_used(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(choose, "checked_sampler", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    lines: list[str] = []
    assert isinstance(choose_sampler(300, CUDA, progress=lines.append), Sampler)
    (line,) = lines
    assert line.endswith(("out of registers", "ValueError"))


def test_kernels_that_fail_in_half_precision_get_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_tokens = TritonSampler._choose
    kinds: list[torch.dtype] = []

    def fail(sampler: TritonSampler, logits: torch.Tensor, *others: Any) -> None:
        kinds.append(logits.dtype)
        if logits.dtype is torch.bfloat16:
            raise RuntimeError("out of registers")
        choose_tokens(sampler, logits, *others)

    device = torch.device("cpu") if DEVICE.type == "cpu" else CUDA
    checked = partial(checked_sampler, 300, device, Sampler(300, device))
    monkeypatch.setattr(TritonSampler, "_choose", fail)
    monkeypatch.setattr(choose, "Sampler", lambda *_: Sampler(300, device))
    monkeypatch.setattr(choose, "checked_sampler", lambda *words: checked(words[-1]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    lines: list[str] = []
    sampler = choose_sampler(300, CUDA, progress=lines.append, dtype=torch.bfloat16)
    assert isinstance(sampler, TritonSampler)
    assert lines == []
    assert torch.bfloat16 in kinds
    kinds.clear()
    logits = torch.zeros(1, 300, dtype=torch.bfloat16, device=device)
    logits[0, 7] = 1.0
    params = SamplingParams(temperature=0.0)
    assert sampler.launch(logits, [SamplingState(params, 0, 0, [])]).read().token_ids == [7]
    assert kinds == [torch.float32]


def test_a_device_that_fails_in_the_check_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(choose, "checked_sampler", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(ModelLoadError, match=r"cuda:0 failed .*illegal memory access"):
        choose_sampler(300, CUDA)


def test_a_draw_that_differs_with_one_seed_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    class WrongTwice(TritonSampler):
        num_calls = 0

        def __call__(self, logits: torch.Tensor, states: list[SamplingState]) -> SampledTokens:
            result = super().__call__(logits, states)
            self.num_calls += 1
            result.token_ids[1] += self.num_calls <= 2  # both launches of the first seed
            return result

    monkeypatch.setattr(triton_sampler, "TritonSampler", WrongTwice)
    monkeypatch.setattr(choose, "check_states", lambda: check_states()[:2])
    assert isinstance(checked_sampler(300, DEVICE, Sampler(300, DEVICE)), WrongTwice)


@pytest.mark.parametrize("wrong", ["token", "logprob", "top"])
def test_kernels_with_other_results_are_not_used(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(TritonSampler):
        def __call__(self, logits: torch.Tensor, states: list[SamplingState]) -> SampledTokens:
            result = super().__call__(logits, states)
            entry = result.logprobs[0]
            assert entry is not None
            token, logprob, tops = result.token_ids[0], entry.logprob, entry.top_logprobs
            if wrong == "token":
                result.token_ids[0] = token + 1
            elif wrong == "logprob":
                logprob -= 0.01
            else:
                tops = (tops[0], tops[1] - 0.01, *tops[2:])
            result.logprobs[0] = TokenLogprobs(token, logprob, entry.top_ids, tops)
            return result

    monkeypatch.setattr(triton_sampler, "TritonSampler", Wrong)
    monkeypatch.setattr(choose, "check_states", lambda: check_states()[:1])
    with pytest.raises(RuntimeError, match=r"the Triton kernels differ for .*temperature=0\.0"):
        checked_sampler(300, DEVICE, Sampler(300, DEVICE))


def test_kernels_are_launched_on_the_device_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    seen: list[torch.device | None] = []

    @contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def noting(function: Callable[..., object]) -> Callable[..., object]:
        def noted(*args: object) -> object:
            seen.append(current[-1] if current else None)
            return function(*args)

        return noted

    monkeypatch.setattr(triton_sampler, "as_current_device", enter)
    for name in ("edit_logits", "HostCopies", "Results"):
        monkeypatch.setattr(triton_sampler, name, noting(getattr(triton_sampler, name)))
    monkeypatch.setattr(TritonSampler, "_choose", noting(TritonSampler._choose))
    checked_sampler(300, DEVICE, Sampler(300, DEVICE))
    assert len(seen) >= 6
    assert {device and device.type for device in seen} == {DEVICE.type}


def test_a_missing_entry_is_a_difference() -> None:
    entry = TokenLogprobs(1, -1.0)
    with_entry = SampledTokens([1], [entry])
    assert differences(with_entry, SampledTokens([1], [None])) == [0]
    assert differences(with_entry, with_entry) == []
    assert differences(with_entry, SampledTokens([1], [entry], {0: "it failed"})) == [0]


def test_the_check_has_rows_of_every_kind() -> None:
    states = check_states()
    assert {state.params.top_k > 0 for state in states} == {True, False}
    assert any(state.constraint for state in states)
    assert any(state.suppressed_ids for state in states)
    assert any(state.params.temperature == 0.0 for state in states)
