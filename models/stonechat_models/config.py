"""The settings from which an engine is built, in one frozen record."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["int8", "int4", "fp8"]
Quantize = Literal["auto", "none"] | Precision
KvCacheDtype = Literal["auto", "bfloat16", "int8", "fp8"]
Backend = Literal["auto", "native", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine. Sizes are in bytes, lengths in tokens.

    A value of `None` or `"auto"` is chosen at load. `ModelInfo` reports the main ones.
    """

    model: str
    """A name of the Hugging Face hub, a local folder with safetensors, or a GGUF file."""
    revision: str | None = None
    adapter: str | None = None
    """The folder of a LoRA adapter to merge into the weights, or its name on the hub."""
    mmproj: str | None = None
    """The vision part of a GGUF file: a GGUF file too, or its name on the hub. None: the one beside
    it or in its repository, if there is one; "none": no part."""
    lora: tuple[str, ...] = ()
    """LoRA adapters to compute beside the model, each as `NAME=DIR`: the name that requests give,
    and the adapter's folder or its name on the hub."""
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantize = "auto"
    """auto: a quantised GGUF keeps its own precision; other models are not quantised."""
    backend: Backend = "auto"
    """native: the compiled CPU path; transformers: the model's own PyTorch code."""
    attention_backend: str = "auto"
    device_map: str | None = None
    tensor_parallel: int = 1
    """How many devices share the model, each with a part of every layer. On a CPU they are
    processes, which share its threads and memory. The sizes of the KV cache are those of one."""
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_fraction: float | None = None
    """Share of the memory free after loading for the KV cache. Ignored with `kv_cache_bytes`."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """auto: the dtype of the activations, on the compiled path bfloat16; int8: with a scale for
    each token and head, only there; fp8: float8_e4m3fn, with values clamped to ±448, not there."""
    media_cache_bytes: int = 256 << 20
    """Encoded images and clips that are kept for later requests, on the model's device."""
    block_size: int = 16
    max_batch_tokens: int | None = None
    max_num_seqs: int | None = None
    prefix_caching: bool = True
    deterministic: bool = False
    threads: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    eager: bool = False
    """Do not use CUDA graphs."""
    overlap: bool | None = None
    """Start the next step before reading the previous step's tokens. None: only on CUDA."""
    generation_config: Literal["model", "none"] = "model"
    """Whether `ModelInfo.sampling_defaults` are those of the model's generation_config.json."""
    embeddings: bool = False
    """Also make embeddings with a model that generates, of the last token of a text."""
    prompt_lookup: bool | None = None
    """Draft tokens where the context repeats itself, and verify several of them per step. None:
    only where that is measured to be faster, on the native backend and without overlap."""
    draft_model: str | None = None
    """A smaller model of the same tokens, named like `model`, that drafts tokens for it."""
    num_draft_tokens: int = 8
    """How many tokens the draft model drafts at most for a sequence in a step."""
    engine_process: bool | None = None
    """Run the engine in a process of its own. None: only on CUDA."""

    @property
    def device_name(self) -> str:
        """The device, or `auto`. With the native backend that is the CPU, unless one is named."""
        return "cpu" if self.device == "auto" and self.backend == "native" else self.device
