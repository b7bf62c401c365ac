"""Calculates from a model's headers what serving it takes, before anything is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.headers import ModelHeaders, TensorHeader, read_headers
from stonechat_models.checkpoint.support import context_length, refuse_unserved_layers
from stonechat_models.config import EngineConfig, Precision, Quantize
from stonechat_models.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

GGUF_INPUT, GGUF_HEAD = "token_embd.weight", "output.weight"
INPUT_NAMES = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
EXPERT_MARKS = (".experts.", "_exps.")
GGUF_ONLY = ("rope_freqs.weight",)
NATIVE_KV_BYTES = 2
NATIVE_FORMS: dict[Quantize, str] = {"auto": "as stored", "int8": "int8", "int4": "int4"}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BITS = {"int8": 8.5, "int4": 5.0}
"""Bits per weight, with its share of the scales, in groups of 32 weights."""
INT4_MULTIPLE = 1024
"""On CUDA, the inputs of an int4 matrix are padded to a multiple of this."""
ROUTER_NAMES = (
    ".gate.weight",
    ".router.weight",
    ".shared_expert_gate.weight",
    ".ffn_gate_inp.weight",
)


@dataclass(frozen=True, slots=True)
class ServingForm:
    """A precision and a backend that can serve a model. Sizes are in bytes."""

    name: str
    backend: str
    weight_bytes: int
    decode_bytes: int
    """Bytes of weights that a decode step of one sequence reads."""
    kv_bytes_per_token: int
    is_default: bool
    """Whether the settings, as they are, choose this form."""


@dataclass(frozen=True, slots=True)
class ModelSurvey:
    """A model before it is loaded. `refusal` says why it is not served. None: it is served."""

    name: str
    architecture: str
    model_type: str
    num_parameters: int
    num_active_parameters: int
    """Parameters that one token uses. In a mixture of experts they are fewer than all."""
    stored_bytes: int
    stored_types: Mapping[str, int]
    """Number of parameters per stored type."""
    max_model_len: int
    kv_elements_per_token: int
    device: str
    total_memory: int
    free_memory: int
    refusal: str | None
    native_refusal: str | None
    """Why the compiled CPU path does not serve the model. None: it does."""
    forms: tuple[ServingForm, ...]

    def kv_budget(self, form: ServingForm, config: EngineConfig) -> int:
        """Return the bytes that the KV cache gets after the weights are loaded; 0: no room."""
        from stonechat_models.runtime.build import DEFAULT_KV_FRACTION, MAX_DEFAULT_CPU_KV_BYTES

        available = max(0, self.free_memory - form.weight_bytes)
        if config.kv_cache_bytes is not None:
            return min(available, config.kv_cache_bytes)
        kind = self.device.partition(":")[0]
        budget = int(available * (config.kv_cache_fraction or DEFAULT_KV_FRACTION[kind]))
        if kind == "cpu" and config.kv_cache_fraction is None:
            budget = min(budget, MAX_DEFAULT_CPU_KV_BYTES)
        return budget


def survey_model(config: EngineConfig, progress: Progress) -> ModelSurvey:
    """Calculate what the model of `config` takes on its device.

    Raises `ModelLoadError` when its headers cannot be read, or the device does not exist. A model
    that would be refused is surveyed as far as possible, with `refusal` set.
    """
    from stonechat_models.hardware.device import choose_device, free_memory, total_memory

    device = choose_device(config.device)
    headers = read_headers(config, progress)
    weights = [t for t in headers.tensors if t.name not in GGUF_ONLY]
    text = _text_config(headers.config)
    refusal, limit = _served_length(text, config.max_model_len)
    refusal = refusal or _format_refusal(config, device)
    native_refusal = _native_refusal(headers, config, device.type)
    kv_elements = _kv_elements(text)
    forms = _forms(headers, weights, config, device.type, native_refusal, kv_elements)
    types: dict[str, int] = {}
    for tensor in weights:
        types[tensor.type_name] = types.get(tensor.type_name, 0) + tensor.num_elements
    share = _active_share(text)
    return ModelSurvey(
        name=headers.name,
        architecture=str((headers.config.get("architectures") or ["?"])[0]),
        model_type=str(headers.config.get("model_type")),
        num_parameters=sum(types.values()),
        num_active_parameters=round(
            sum(t.num_elements * (share if _is_expert(t) else 1.0) for t in weights)
        ),
        stored_bytes=sum(tensor.num_bytes for tensor in weights),
        stored_types=types,
        max_model_len=limit,
        kv_elements_per_token=kv_elements,
        device=str(device),
        total_memory=total_memory(device),
        free_memory=free_memory(device),
        refusal=refusal,
        native_refusal=native_refusal,
        forms=forms,
    )


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the language model, also from a config that has other parts."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, Mapping) else dict(config)


def _served_length(config: dict[str, Any], requested: int | None) -> tuple[str | None, int]:
    try:
        refuse_unserved_layers(config)
        _refuse_unknown(str(config.get("model_type")))
        return None, context_length(config, requested)
    except UnsupportedModelError as error:
        return str(error), context_length(config, None)


def _format_refusal(config: EngineConfig, device: "torch.device") -> str | None:
    from stonechat_models.backends.quantization.device_support import refuse_weight_format

    try:
        refuse_weight_format(config, device)
    except UnsupportedModelError as error:
        return str(error)
    return None


def _refuse_unknown(model_type: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"the installed transformers has no causal language model of type {model_type}"
        )


def _native_refusal(headers: ModelHeaders, config: EngineConfig, device_type: str) -> str | None:
    from stonechat_models.backends.native.compile import find_compiler
    from stonechat_models.backends.native.spec import read_spec

    if device_type != "cpu":
        return f"it runs only on a CPU, and the device is {device_type}"
    if config.backend == "transformers":
        return "the settings name the transformers backend"
    if config.dtype != "auto":
        return "the settings name a dtype, and it keeps weights as stored"
    if config.kv_cache_dtype != "auto":
        return f"it keeps keys and values in half precision, not in {config.kv_cache_dtype}"
    if find_compiler() is None:
        return "there is no C++ compiler; install g++ or clang++"
    try:
        read_spec(dict(headers.config))
    except UnsupportedModelError as error:
        return str(error)
    return None


def _kv_elements(config: dict[str, Any]) -> int:
    """Return how many elements the keys and values of one token have, over all layers."""
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    if config.get("kv_lora_rank"):  # latent attention: the cache holds full keys and values
        key = int(config.get("qk_nope_head_dim") or 0) + int(config.get("qk_rope_head_dim") or 0)
        return layers * heads * (key + int(config.get("v_head_dim") or key))
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return layers * 2 * kv_heads * int(config.get("head_dim") or hidden // heads)


def _active_share(config: dict[str, Any]) -> float:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((int(config[name]) for name in names if config.get(name)), 0)
    return min(1.0, int(config.get("num_experts_per_tok") or experts) / experts) if experts else 1.0


def _is_input(tensor: TensorHeader) -> bool:
    return tensor.name == GGUF_INPUT or tensor.name.endswith(INPUT_NAMES)


def _is_head(tensor: TensorHeader) -> bool:
    return tensor.name == GGUF_HEAD or tensor.name.endswith(HEAD_NAMES)


def _is_expert(tensor: TensorHeader) -> bool:
    return any(mark in tensor.name for mark in EXPERT_MARKS)


def _forms(
    headers: ModelHeaders,
    weights: list[TensorHeader],
    config: EngineConfig,
    device_type: str,
    native_refusal: str | None,
    kv_elements: int,
) -> tuple[ServingForm, ...]:
    text = _text_config(headers.config)
    is_tied = not any(_is_head(tensor) for tensor in weights)

    def form(name: str, backend: str, size: Callable[[TensorHeader], int], default_kv_bytes: int,
             is_default: bool, head: int = 0) -> ServingForm:  # fmt: skip
        """`head`: bytes of a head that is stored beside the embedding it is tied to."""
        kv_bytes = {"auto": default_kv_bytes, "bfloat16": 2, "fp8": 1}[config.kv_cache_dtype]
        sizes = [(tensor, size(tensor)) for tensor in weights]
        return ServingForm(
            name=name,
            backend=backend,
            weight_bytes=sum(number for _, number in sizes) + head,
            decode_bytes=_decode_bytes(text, sizes, has_head=not is_tied or head > 0) + head,
            kv_bytes_per_token=kv_elements * kv_bytes,
            is_default=is_default,
        )

    forms = []
    if native_refusal is None:
        requested: Quantize = "auto" if config.quantize == "none" else config.quantize
        for quantize, name in NATIVE_FORMS.items():
            size_of = partial(native_bytes, quantize=quantize)
            forms.append(form(name, "native", size_of, NATIVE_KV_BYTES, quantize == requested))
    if config.backend == "native":
        return tuple(forms)
    default = _default_dtype(headers, config, device_type)
    is_float = native_refusal is not None and config.quantize in ("auto", "none")
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
        if device_type != "cpu" or dtype != "float16" or dtype == default:
            size_of = partial(_plain_bytes, size=size)
            forms.append(form(dtype, "transformers", size_of, size, is_float and dtype == default))
    if device_type == "cuda":
        for precision in _gpu_precisions():
            size = 2 if precision != "int8" else DTYPE_BYTES[default]
            size_of = partial(_gpu_bytes, precision=precision, size=size)
            is_default = config.quantize == precision
            forms.append(form(precision, "transformers", size_of, size, is_default))
        return tuple(forms)
    # Quantised weights in PyTorch: int8 or int4 on a CPU, with the rest in float32; else only int8.
    size = 4 if device_type == "cpu" and config.dtype == "auto" else DTYPE_BYTES[default]
    for quantize in ("int8", "int4") if device_type == "cpu" else ("int8",):
        if native_refusal is None:
            break
        size_of = partial(_mixed_bytes, bits=QUANTIZED_BITS[quantize], size=size)
        head = (
            sum(round(t.num_elements * 8.5 / 8) for t in weights if _is_input(t)) if is_tied else 0
        )
        is_default = config.quantize == quantize
        forms.append(form(quantize, "transformers", size_of, size, is_default, head))
    return tuple(forms)


def native_bytes(tensor: TensorHeader, quantize: Quantize) -> int:
    """Return the bytes of a tensor in the compiled path, scales included. Vectors are float32."""
    from stonechat_models.backends.native.bindings import Kind
    from stonechat_models.backends.native.weight_plan import kept_kind

    if len(tensor.shape) < 2:
        return tensor.num_elements * 4
    bits = {
        Kind.AFFINE4: 5.0, Kind.SYMMETRIC4: 4.5, Kind.INT8: 8.5,
        Kind.BF16: 16.0, Kind.HALF: 16.0, Kind.FLOAT: 32.0,
    }  # fmt: skip
    is_end = _is_input(tensor) or _is_head(tensor)
    is_router = tensor.name.endswith((".gate.weight", "ffn_gate_inp.weight"))
    target: Quantize = "auto" if is_router else quantize
    kind = kept_kind(tensor.type_name, target, is_end=is_end)
    return round(tensor.num_elements * bits[kind] / 8)


def _plain_bytes(tensor: TensorHeader, size: int) -> int:
    return tensor.num_elements * size


def _mixed_bytes(tensor: TensorHeader, bits: float, size: int) -> int:
    """Return the bytes of a tensor when linear layers and experts have `bits` per weight.

    The head has 8 bits and scales. The embedding, routers and vectors keep `size` bytes per weight.
    """
    if len(tensor.shape) < 2 or _is_input(tensor) or tensor.name.endswith(ROUTER_NAMES):
        return tensor.num_elements * size
    return round(tensor.num_elements * (8.5 if _is_head(tensor) else bits) / 8)


def _gpu_precisions() -> list[Precision]:
    """Return the precisions that the first CUDA device supports."""
    import torch

    from stonechat_models.backends.quantization.device_support import LEAST_CAPABILITY

    capability = torch.cuda.get_device_capability()
    return [precision for precision, least in LEAST_CAPABILITY.items() if capability >= least]


def _gpu_bytes(tensor: TensorHeader, precision: Precision, size: int) -> int:
    """Return the bytes of a tensor on CUDA, where linear layers are quantised if they fit.

    See `torchao_linear`. The head, experts and all else keep `size` bytes per weight.
    """
    names = (*INPUT_NAMES, *HEAD_NAMES, *ROUTER_NAMES)
    is_linear = len(tensor.shape) == 2 and not tensor.name.endswith(names)
    if not is_linear or tensor.name in (GGUF_INPUT, GGUF_HEAD) or _is_expert(tensor):
        return tensor.num_elements * size
    rows, columns = tensor.shape
    if precision == "int8":
        return rows * (columns + 5)
    if precision == "fp8" and rows % 16 == columns % 16 == 0:
        return rows * (columns + 4)
    if precision == "int4" and columns % 32 == 0:
        padded = -(-columns // INT4_MULTIPLE) * INT4_MULTIPLE
        return round(rows * padded * QUANTIZED_BITS["int4"] / 8)
    return tensor.num_elements * size


def _default_dtype(headers: ModelHeaders, config: EngineConfig, device_type: str) -> str:
    import torch

    from stonechat_models.hardware.device import choose_dtype

    dtype = choose_dtype(config.dtype, dict(headers.config), torch.device(device_type))
    return str(dtype).removeprefix("torch.")


def _decode_bytes(
    config: dict[str, Any], sizes: list[tuple[TensorHeader, int]], *, has_head: bool
) -> int:
    share = _active_share(config)
    total = 0.0
    for tensor, size in sizes:
        if has_head and _is_input(tensor):
            continue  # a step reads one row of it
        total += size * share if _is_expert(tensor) else size
    return round(total)
