"""What an engine is built from: one frozen record, with no defaults hidden elsewhere."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["int8", "int4", "fp8"]
Quantize = Literal["auto", "none"] | Precision
KvCacheDtype = Literal["auto", "bfloat16", "fp8"]
Backend = Literal["auto", "native", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine. `None` and `"auto"`: chosen at load and reported in `ModelInfo`.

    Sizes are in bytes, lengths in tokens.
    """

    model: str
    """A Hugging Face id, a local folder with safetensors, or a `.gguf` file."""
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantize = "auto"
    """auto: a quantised GGUF keeps its own precision, other models are not quantised."""
    backend: Backend = "auto"
    """native: the compiled CPU path; transformers: the model's own PyTorch code."""
    attention_backend: str = "auto"
    device_map: str | None = None
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_fraction: float | None = None
    """Share of the memory free after loading that the KV cache takes, when no size is given."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """auto: that of the activations; fp8: float8_e4m3fn, values beyond 448 cut to it."""
    block_size: int = 16
    max_batch_tokens: int | None = None
    max_num_seqs: int | None = None
    prefix_caching: bool = True
    deterministic: bool = False
    threads: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    eager: bool = False
    """Switch off CUDA graphs."""
    overlap: bool | None = None
    """Launch a step before the tokens of the one before are read. None: on CUDA only."""
    prompt_lookup: bool = False
    """Guess tokens from what the context repeats, and verify several in a step."""
    engine_process: bool | None = None
    """Run the engine in a process of its own. None: on CUDA only."""
