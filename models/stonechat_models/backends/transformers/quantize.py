"""Quantises the weights of an unmodified Hugging Face module in place, layer by layer.

Replaced are `nn.Linear` and GPT-2's `Conv1D` (the head too) and the experts of a mixture, where
they are stored in transformers' common form. Kept are embeddings, norms, and the routers that
choose experts, which are small and sensitive. In int4 the head is kept in 8 bits. On CUDA the head
is kept too: a step would write it out of int8 codes, and fp8 would show in every logit.

The check at load (`check_packing`) runs before that, on the float module: rounding to codes would
turn its last-bit differences into larger ones, that hide what it looks for. Afterwards the
quantised module only has to run, and to give finite logits.

A device map: each layer is quantised where it lies, in the form for that device. A dtype: what is
not quantised (embeddings, norms, attention, the KV cache) is computed in it; by default in float32
on a CPU, in bfloat16 for int4 and fp8 on CUDA, and as without quantisation elsewhere.
"""

from collections.abc import Iterator

import torch
from torch import nn

from stonechat_models.backends.quantization.choose import quantized_linear
from stonechat_models.backends.quantization.cpu_linear import LinearTeam, NativeLinear, TorchLinear
from stonechat_models.backends.quantization.experts import QuantizedExperts, is_experts
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.packing_check import check_packing, packed_forward
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.config import EngineConfig, Precision
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.device import checkpoint_dtype, choose_dtype

ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate", "classifier"})


def dtypes(
    config: EngineConfig, model_config: dict[str, object], device: torch.device
) -> tuple[torch.dtype, torch.dtype]:
    """The dtype to load in and the one to run in.

    On a CPU a bfloat16 checkpoint is loaded as it is, so that its pages need not be copied. Raises
    `UnsupportedModelError` for a dtype that the asked-for kernels do not multiply.
    """
    chosen = choose_dtype(config.dtype, model_config, device)
    if device.type == "cuda" and config.quantize in ("int4", "fp8"):
        if config.dtype != "auto" and chosen is not torch.bfloat16:
            raise UnsupportedModelError(
                f"{config.quantize} weights on a GPU are multiplied in bfloat16, not {config.dtype}"
            )
        return torch.bfloat16, torch.bfloat16
    if device.type != "cpu" or config.dtype != "auto":
        return chosen, chosen
    stored = checkpoint_dtype(model_config)
    return (stored if stored is torch.bfloat16 else torch.float32), torch.float32


def quantize_checked(
    module: nn.Module,
    precision: Precision,
    dtype: torch.dtype,
    team: LinearTeam | None,
    *,
    deterministic: bool = False,
    probe: ProbeContext | None = None,
) -> tuple[str, ProbeContext]:
    """Check the float module, quantise it in place, and see that it runs in `dtype`.

    `probe`: what the check found, where it was made before parts of the module were fused.
    Returns what was done, for `ModelInfo.quantization`: int8, or with what was left as it was.
    Raises `UnsupportedModelError` with the reason.
    """
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    device, vocab_size = embedding.weight.device, int(module.config.vocab_size)  # type: ignore
    probe = probe or check_packing(module, device, vocab_size)
    name = quantize_module(module, precision, team)
    on_cpu = (NativeLinear, TorchLinear)
    if deterministic and any(
        isinstance(m, QuantizedLinear) and not isinstance(m, on_cpu) for m in module.modules()
    ):
        raise UnsupportedModelError(
            "layers quantised off the CPU are not multiplied in one fixed order (--deterministic)"
        )
    if embedding.weight.dtype is not dtype:
        module.to(dtype)
    _check_runs(module, device, vocab_size)
    return name, probe


@torch.inference_mode()
def _check_runs(module: nn.Module, device: torch.device, vocab_size: int) -> None:
    num_tokens = min(8, vocab_size)
    ids = torch.arange(num_tokens, device=device)
    try:
        logits = packed_forward(module, ids, ids, ProbeContext([0, num_tokens]))
    except Exception as error:
        raise UnsupportedModelError(f"it does not run once quantised: {error}") from error
    if not torch.isfinite(logits).all():
        raise UnsupportedModelError("once quantised it gives logits that are not finite")


def load_team(threads: int, progress: Progress) -> LinearTeam | None:
    """The compiled kernels; None, with a line that says so, where they cannot be had."""
    from stonechat_models.backends.native.bindings import load_library

    try:
        return LinearTeam(load_library(progress), threads)
    except UnsupportedModelError as error:
        progress(f"quantised layers run through PyTorch, slowly: {error}")
        return None


@torch.inference_mode(False)
@torch.no_grad()
def quantize_module(module: nn.Module, precision: Precision, team: LinearTeam | None) -> str:
    """Replace what can be; each float weight is let go before the next is quantised.

    Returns `precision`, with the names of what was not replaced, if anything. Raises
    `UnsupportedModelError` with the reason when nothing can be replaced.
    """
    head = module.get_output_embeddings()  # type: ignore[operator]
    num_replaced = 0
    for parent, name in _places(module):
        child = getattr(parent, name)
        if child is head and is_on_cuda(child):
            continue
        found = _quantised(name, child, "int8" if child is head else precision, team)
        if found is not None:
            setattr(parent, name, found)
            num_replaced += 1
    if not num_replaced:
        raise UnsupportedModelError("it has no linear layers that can be quantised")
    left = sorted({_short(name) for name in _left(module)})
    return f"{precision} (not: {', '.join(left)})" if left else precision


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights, quantised or not."""
    quantised = sum(m.num_bytes for m in module.modules() if isinstance(m, QuantizedLinear))
    return quantised + sum(p.numel() * p.element_size() for p in module.parameters())


def is_on_cuda(module: nn.Module) -> bool:
    """Whether its weights are on a CUDA device."""
    return any(parameter.device.type == "cuda" for parameter in module.parameters())


def _short(name: str) -> str:
    """A matrix by its own name, or by its layer's where that is only `weight`."""
    parts = name.split(".")
    return parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]


def _places(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every submodule as its parent and its name there, so that none is kept alive by the list."""
    return [(parent, name) for parent in module.modules() for name, _ in parent.named_children()]


def _quantised(
    name: str, child: nn.Module, precision: Precision, team: LinearTeam | None
) -> nn.Module | None:
    from transformers.pytorch_utils import Conv1D

    if name in ROUTER_NAMES:
        return None
    if type(child) is nn.Linear:
        return quantized_linear(child.weight, child.bias, precision, team)
    if type(child) is Conv1D:
        return quantized_linear(child.weight.T, child.bias, precision, team)  # type: ignore[arg-type]
    if precision != "fp8" and is_experts(child):
        return QuantizedExperts(child, precision, team)
    return None


def _left(module: nn.Module) -> Iterator[str]:
    """Matrices that take part in products and are as they were, routers aside."""
    for name, parameter in module.named_parameters():
        owner = name.rpartition(".")[0]
        is_router = owner.rpartition(".")[2] in ROUTER_NAMES
        is_embedding = isinstance(module.get_submodule(owner), nn.Embedding)
        if parameter.dim() > 1 and not (is_router or is_embedding):
            yield name
