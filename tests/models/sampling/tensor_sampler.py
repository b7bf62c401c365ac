"""The compiled sampler on tensors, for tests that compare it with the one in PyTorch."""

from collections.abc import Sequence

import torch

from stonechat_models.backends.native.sampler import NativeSampler, NativeSampling
from stonechat_models.sampling.state import SamplingState


class TensorSampler(NativeSampler):
    """Takes logits as tensors. May overwrite them if they are float32 and contiguous."""

    def launch(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> NativeSampling:  # type: ignore[override]
        return super().launch(logits.float().contiguous().numpy(), states)
