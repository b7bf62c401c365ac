"""Quantises the weights of a Hugging Face module in place, layer by layer.

`nn.Linear` and GPT-2's `Conv1D` are replaced, including the head. So are the experts of a mixture
on a CPU, if they are stored in transformers' common layout. Embeddings and norms stay as they are.
So do the routers that choose experts: they are small and sensitive. With int4 the head has 8 bits.
On CUDA the head stays as it is: with int8, each step would dequantise it in full, and the errors of
fp8 would show in every logit.

The packing check must run first, on the float module: after quantisation, harmless rounding
differences become large enough to hide a real error. Afterwards the quantised module only has to
run and to return finite logits.

With a device map, each layer is quantised on its own device, in the format for that device. What
is not quantised (embeddings, norms, attention, the KV cache) is computed in the dtype of the
configuration. Its default is float32 on a CPU, bfloat16 for int4 and fp8 on CUDA, and otherwise
the same as without quantisation.
"""

from collections.abc import Iterator

import torch
from torch import nn

from stonechat_models.backends.quantization.choose import quantized_linear
from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear
from stonechat_models.backends.quantization.codes.codes import Codes
from stonechat_models.backends.quantization.cpu_linear import LinearTeam, NativeLinear, TorchLinear
from stonechat_models.backends.quantization.device_support import precision_of
from stonechat_models.backends.quantization.experts import QuantizedExperts, is_experts
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.packing_check import check_packing, probe_layers
from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.backends.transformers.verify import random_prompts
from stonechat_models.checkpoint.cache import Progress
from stonechat_models.config import EngineConfig, Precision
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.device import choose_dtype

ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate", "classifier"})


def dtypes(
    config: EngineConfig, stored: str, device: torch.device
) -> tuple[torch.dtype, torch.dtype]:
    """The dtype to load in, and the dtype to run in. `stored` is the checkpoint's.

    On a CPU a bfloat16 checkpoint that is quantised is loaded as it is, so that its pages need not
    be copied. Raises `UnsupportedModelError` if the kernels for the precision cannot multiply in
    that dtype.
    """
    dtype = choose_dtype(config.dtype, stored, device)
    precision = precision_of(config)
    if device.type == "cuda" and precision in ("int4", "fp8"):
        if config.dtype != "auto" and dtype is not torch.bfloat16:
            raise UnsupportedModelError(
                f"{precision} weights on a GPU are multiplied in bfloat16, not {config.dtype}"
            )
        return torch.bfloat16, torch.bfloat16
    if precision is None or device.type != "cpu" or config.dtype != "auto":
        return dtype, dtype
    return (torch.bfloat16 if stored == "bfloat16" else torch.float32), torch.float32


def quantize_checked(
    module: nn.Module,
    precision: Precision,
    dtype: torch.dtype,
    team: LinearTeam | None,
    *,
    deterministic: bool = False,
    probe: ProbeContext | None = None,
) -> tuple[str, ProbeContext]:
    """Check the float module, quantise it in place, and check that it runs in `dtype`.

    `probe`: the result of the packing check, if it ran before parts of the module were fused; else
    the check runs here. Returns the text for `ModelInfo.quantization` (the precision, and which
    matrices are not quantised) and the probe. Raises `UnsupportedModelError` with the reason.
    """
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    device, vocab_size = embedding.weight.device, embedding.weight.shape[0]
    probe = probe or check_packing(module, device, vocab_size)
    name = quantize_module(module, precision, team)
    on_cpu = (NativeLinear, TorchLinear)
    if deterministic and any(
        isinstance(m, QuantizedLinear) and not isinstance(m, on_cpu) for m in module.modules()
    ):
        raise UnsupportedModelError(
            "--deterministic needs quantised layers on the CPU: other devices sum in no fixed order"
        )
    if embedding.weight.dtype is not dtype:
        module.to(dtype)
    _check_runs(module, device, vocab_size, probe)
    return name, probe


@torch.inference_mode()
def _check_runs(
    module: nn.Module, device: torch.device, vocab_size: int, probe: ProbeContext
) -> None:
    batch = random_prompts([8], vocab_size).to(device)
    try:
        if probe.shapes:
            _, logits = probe_layers(module, batch)
        else:
            logits = module(input_ids=batch.token_ids.unsqueeze(0), use_cache=False).logits
    except Exception as error:
        raise UnsupportedModelError(f"the quantised model does not run: {error}") from error
    if not torch.isfinite(logits).all():
        raise UnsupportedModelError("the quantised model's logits are not finite")


def load_team(threads: int, progress: Progress) -> LinearTeam | None:
    """Load the compiled kernels. If that fails, report why to `progress` and return None."""
    from stonechat_models.backends.native.bindings import load_library

    try:
        return LinearTeam(load_library(progress), threads)
    except UnsupportedModelError as error:
        progress(f"quantised layers run in PyTorch, which is slow: {error}")
        return None


@torch.inference_mode(False)
@torch.no_grad()
def quantize_module(
    module: nn.Module, precision: Precision, team: LinearTeam | None, kind: str | None = None
) -> str:
    """Replace every layer that can be quantised, but not those of a vision tower.

    Each float weight is freed before the next one is quantised. `kind`: for a module on the meta
    device, the type of the device whose layers it gets. Returns `precision`, followed by the names
    of the matrices that are not quantised, if any. Raises `UnsupportedModelError` if no layer can
    be quantised.
    """
    head = module.get_output_embeddings()  # type: ignore[operator]
    tower = tower_parts(module)
    num_replaced = 0
    for parent, name in _submodules(module):
        child = getattr(parent, name)
        if child in tower or (child is head and (kind == "cuda" or is_on_cuda(child))):
            continue
        layer_precision: Precision = "int8" if child is head else precision
        replacement = _quantised_layer(name, child, layer_precision, team, kind)
        if replacement is not None:
            setattr(parent, name, replacement)
            num_replaced += 1
    if not num_replaced:
        raise UnsupportedModelError("the model has no linear layers to quantise")
    names = sorted({_short_name(name) for name in _unquantised_matrices(module, tower)})
    if tower:
        names.append("vision tower")
    return f"{precision} (not: {', '.join(names)})" if names else precision


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights, quantised or not."""
    layers = [m for m in module.modules() if isinstance(m, QuantizedLinear)]
    quantised = sum(m.num_bytes for m in layers if not isinstance(m, CodedLinear))
    coded = sum(codes.num_bytes for codes in stored_codes(module))
    return quantised + coded + sum(p.numel() * p.element_size() for p in module.parameters())


def num_weights(module: nn.Module) -> int:
    """How many numbers the weights are."""
    coded = sum(codes.shape.numel() for codes in stored_codes(module))
    return coded + sum(p.numel() for p in module.parameters())


def stored_label(module: nn.Module) -> str:
    """The text for `ModelInfo.quantization` of a module as it was loaded."""
    names = sorted({codes.format.name for codes in stored_codes(module)})
    return f"as stored ({', '.join(names)})" if names else "none"


def stored_codes(module: nn.Module) -> list[Codes]:
    """All weights that stay as a file stores them, each once."""
    found: dict[int, Codes] = {}
    for part in module.modules():
        if isinstance(codes := getattr(part, "codes", None), Codes):  # embeddings and experts
            found[id(codes)] = codes
        elif isinstance(part, CodedLinear):
            found |= {id(codes): codes for codes in part.parts}
    return list(found.values())


def is_on_cuda(module: nn.Module) -> bool:
    """Whether any weight of `module` is on a CUDA device."""
    return any(parameter.device.type == "cuda" for parameter in module.parameters())


def _short_name(name: str) -> str:
    """The last part of a matrix's name, or its layer's name if that part is only `weight`."""
    parts = name.split(".")
    return parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]


def _submodules(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every submodule as its parent and its name there: the list keeps no replaced layer alive."""
    return [(parent, name) for parent in module.modules() for name, _ in parent.named_children()]


def _quantised_layer(
    name: str,
    child: nn.Module,
    precision: Precision,
    team: LinearTeam | None,
    kind: str | None,
) -> nn.Module | None:
    from transformers.pytorch_utils import Conv1D

    if name in ROUTER_NAMES:
        return None
    options = {} if kind is None else {"kind": kind}
    if type(child) is nn.Linear:
        return quantized_linear(child.weight, child.bias, precision, team, **options)
    if type(child) is Conv1D:
        weight, bias = child.weight.T, child.bias
        return quantized_linear(weight, bias, precision, team, **options)  # type: ignore[arg-type]
    if precision != "fp8" and is_experts(child, kind):
        return QuantizedExperts(child, precision, team, kind)
    return None


def _unquantised_matrices(module: nn.Module, tower: set[nn.Module]) -> Iterator[str]:
    """Names of the matrices that are multiplied but not quantised, outside routers and `tower`."""
    for name, parameter in module.named_parameters():
        owner = name.rpartition(".")[0]
        if module.get_submodule(owner) in tower:
            continue
        is_router = owner.rpartition(".")[2] in ROUTER_NAMES
        is_embedding = isinstance(module.get_submodule(owner), nn.Embedding)
        if parameter.dim() > 1 and not (is_router or is_embedding):
            yield name
