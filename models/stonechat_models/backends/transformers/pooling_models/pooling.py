"""From the hidden states of tokens to one vector per text: pooling, then further layers."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from stonechat_models.checkpoint.hf_config import shown
from stonechat_models.checkpoint.sentence_transformers import EmbedderFiles, EmbeddingStep
from stonechat_models.checkpoint.weight_files import weights_in
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

MAX_SHOWN = 500


def _cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[_rows(hidden), mask.int().argmax(dim=1)]


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    return hidden[_rows(hidden), last]


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _sum(hidden, mask) / mask.sum(dim=1, keepdim=True)


def _mean_sqrt_len(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _sum(hidden, mask) / mask.sum(dim=1, keepdim=True).sqrt()


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Token i counts i + 1 times."""
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _sum(hidden, weights) / weights.sum(dim=1, keepdim=True)


def _sum(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (hidden * weights.unsqueeze(-1)).sum(dim=1)


def _rows(hidden: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(hidden), device=hidden.device)


POOLING: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""Each takes hidden states float32[N, T, H] and a mask bool[N, T] with a token in every row, and
returns float32[N, H]."""


ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU"),
    *("LogSigmoid", "Mish", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign"),
    *("Tanh", "Tanhshrink"),
)
"""Functions of single numbers, without weights. `torch.nn.modules.activation` and others have them.
"""


class Dense(nn.Module):
    """A linear layer with an activation, and perhaps a residual connection around both."""

    def __init__(self, step: EmbeddingStep) -> None:
        """Raises `UnsupportedModelError` for an activation that is not in `ACTIVATIONS`."""
        super().__init__()
        config = step.config
        num_in, num_out = config.size("in_features"), config.size("out_features")
        self.linear = nn.Linear(num_in, num_out, bias=config.read("bias", bool, True))
        self.activation = activation_named(
            config.read("activation_function", str, "torch.nn.modules.activation.Tanh")
        )
        self.has_residual = config.read("use_residual", bool, False)
        self.residual: nn.Module = nn.Identity()
        if self.has_residual and num_in != num_out:
            self.residual = nn.Linear(num_in, num_out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.activation(self.linear(x))
        return output + self.residual(x) if self.has_residual else output


class Norm(nn.Module):
    """A layer normalisation."""

    def __init__(self, step: EmbeddingStep) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(step.config.size("dimension"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(x)
        return normed


class Normalize(nn.Module):
    """Scales each vector to the Euclidean length 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=-1)


class EmbeddingHead(nn.Module):
    """Turns hidden states into embeddings, in float32."""

    def __init__(self, files: EmbedderFiles, hidden_size: int, *, allow_pickle: bool) -> None:
        """Raises `ModelLoadError` for layers whose weights are missing or do not fit."""
        super().__init__()
        self.pooling = files.pooling
        self.size = hidden_size * len(files.pooling)
        steps: list[nn.Module] = []
        for step in files.steps:
            steps.append(_load_step(step, self.size, allow_pickle))
            if isinstance(layer := steps[-1], Dense):
                self.size = layer.linear.out_features
        self.steps = nn.Sequential(*steps)

    @property
    def is_normalized(self) -> bool:
        """Whether every embedding has the length 1."""
        return len(self.steps) > 0 and isinstance(self.steps[-1], Normalize)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return float32[N, size] of hidden states [N, T, H] and the mask bool[N, T] of the tokens
        that count."""
        hidden = hidden.float()
        pooled = torch.cat([POOLING[name](hidden, mask) for name in self.pooling], dim=-1)
        embeddings: torch.Tensor = self.steps(pooled)
        return embeddings


def activation_named(name: str) -> nn.Module:
    """Return the layer of PyTorch with this name. Raises `UnsupportedModelError` for others."""
    kind = name.rpartition(".")[2] if name.startswith("torch.nn.") else ""
    if kind not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"the activation {shown(name)} is not served: only those of torch.nn named "
            f"{', '.join(ACTIVATIONS)}"
        )
    module: nn.Module = getattr(nn, kind)()
    return module


def _load_step(step: EmbeddingStep, size: int, allow_pickle: bool) -> nn.Module:
    """Build a step for vectors of `size`, with its weights."""
    if step.kind == "Normalize":
        return Normalize()
    expected = step.config.size("in_features" if step.kind == "Dense" else "dimension")
    if expected != size:
        raise ModelLoadError(f"{step.config.source}: it expects vectors of {expected}, not {size}")
    with torch.device("meta"):
        layer: nn.Module = Dense(step) if step.kind == "Dense" else Norm(step)
    try:
        layer.load_state_dict(_weights(step.folder, allow_pickle), assign=True)
    except RuntimeError as error:  # keys that are missing, surplus or misshapen
        problem = " ".join(line.strip() for line in str(error).splitlines())[:MAX_SHOWN]
        raise ModelLoadError(f"{step.folder}: {problem}") from error
    return layer.float().eval().requires_grad_(False)


def _weights(folder: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for path in weights_in(folder, allow_pickle):
        if path.suffix == ".safetensors":
            weights |= load_file(path)
        else:
            weights |= torch.load(path, map_location="cpu", weights_only=True)
    return weights
