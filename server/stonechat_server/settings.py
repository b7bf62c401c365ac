"""Every setting once: flags, environment variables, TOML keys and docs derive from this class.

A flag beats `STONECHAT_<NAME>`, which beats the TOML file, which beats the default.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

if TYPE_CHECKING:
    from stonechat_models import EngineConfig

DEFAULT_MODEL = "SmolLM2-135M-Instruct"


def _option(group: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


def _split(value: object) -> object:
    return (
        [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str)
        else value
    )


Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings of one server. Lists are comma-separated in environment variables."""

    model_config = SettingsConfigDict(
        env_prefix="STONECHAT_", extra="forbid", protected_namespaces=(), frozen=True
    )

    model: str = _option(
        "Model",
        DEFAULT_MODEL,
        "Hugging Face id, local folder with safetensors, or .gguf file",
    )
    revision: str | None = _option("Model", None, "branch, tag or commit of a Hugging Face id")
    served_model_name: Names = _option(
        "Model", (), "name that requests use as `model` (repeatable; default: the model's own)"
    )
    chat_template: str | None = _option(
        "Model", None, "Jinja chat template (a file, or the text itself) in place of the model's"
    )
    tool_format: Literal[
        "auto",
        "hermes",
        "llama_json",
        "pythonic",
        "mistral",
        "mistral_list",
        "deepseek_v3",
        "deepseek_v31",
        "deepseek_v32",
        "harmony",
        "qwen_coder",
        "glm",
        "kimi",
        "minimax",
        "seed",
        "nemotron",
        "granite",
        "phi",
        "lfm2",
        "generic",
    ] = _option("Model", "auto", "how the model writes tool calls (auto: as its template shows)")
    schema_in_prompt: bool = _option(
        "Model", True, "show the model the form its answer must have, in the system message"
    )
    reasoning: bool = _option("Model", True, "tell the model's reasoning from its answer")
    trust_remote_code: bool = _option("Model", False, "run Python code that comes with the model")
    allow_pickle: bool = _option(
        "Model", False, "load pickled weights, which can run code of their author"
    )

    device: str = _option("Computing", "auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "Computing", "auto", "type of the weights and activations"
    )
    quantize: Literal["auto", "none", "int8", "int4", "fp8"] = _option(
        "Computing",
        "auto",
        "auto: a quantised GGUF keeps its precision, others stay as they are; fp8: on a GPU of "
        "compute capability 8.9 or more",
    )
    backend: Literal["auto", "native", "transformers"] = _option(
        "Computing", "auto", "native: compiled CPU kernels; transformers: the model's PyTorch code"
    )
    attention_backend: str = _option(
        "Computing", "auto", "kernel for attention: auto, flashinfer, triton, batched or sdpa"
    )
    device_map: str | None = _option(
        "Computing", None, "auto: spread a model larger than one device over several"
    )
    threads: int | None = _option("Computing", None, "CPU threads of the engine", ge=1)
    deterministic: bool = _option(
        "Computing", False, "only kernels whose result does not depend on the batch"
    )
    eager: bool = _option("Computing", False, "switch CUDA graphs off")
    overlap: bool | None = _option(
        "Computing",
        None,
        "launch a step before the tokens of the one before are read (default: on CUDA only)",
    )
    prompt_lookup: bool = _option(
        "Computing",
        False,
        "guess tokens from what the context repeats and verify several in a step; answers stay "
        "the same",
    )
    engine_process: bool | None = _option(
        "Computing",
        None,
        "run the engine in a process of its own, restarted after a crash (default: on CUDA)",
    )

    max_model_len: int | None = _option(
        "Memory and batching", None, "context length in tokens (default: the model's)", ge=1
    )
    kv_cache_size: ByteSize | None = _option(
        "Memory and batching", None, "memory of the KV cache, such as 2GiB"
    )
    kv_cache_fraction: float | None = _option(
        "Memory and batching",
        None,
        "share of the memory free after loading that the KV cache takes, when no size is given",
        gt=0.0,
        le=1.0,
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8"] = _option(
        "Memory and batching",
        "auto",
        "type of cached keys and values (auto: as the activations; others: not on the compiled "
        "CPU path)",
    )
    block_size: int = _option("Memory and batching", 16, "tokens in a KV block", ge=1)
    max_batch_tokens: int | None = _option(
        "Memory and batching", None, "tokens that one step computes at most", ge=1
    )
    max_num_seqs: int | None = _option(
        "Memory and batching", None, "sequences that run at the same time at most", ge=1
    )
    prefix_caching: bool = _option(
        "Memory and batching", True, "keep and share the KV blocks of equal prompt beginnings"
    )

    host: str = _option("Server", "127.0.0.1", "address to listen on")
    port: int = _option("Server", 8000, "port to listen on; 0: any free one", ge=0, le=65535)
    api_key: Secrets = _option(
        "Server", (), "key that requests must carry (repeatable; none at all: open)"
    )
    api_key_file: Path | None = _option(
        "Server", None, "file with one key a line; empty lines and lines with # first are skipped"
    )
    strict_params: bool = _option("Server", False, "answer 400 to unknown fields of requests")
    allow_request_templates: bool = _option(
        "Server",
        False,
        "let requests of trusted clients bring a `chat_template`, "
        "which may run for long and take all memory",
    )
    max_body_size: ByteSize = _option("Server", ByteSize(8 * 2**20), "largest request body", ge=1)
    keep_alive_interval: float = _option(
        "Server", 15.0, "seconds between the comments that keep a stream alive; 0: none", ge=0.0
    )
    shutdown_grace: int = _option(
        "Server", 30, "seconds that running requests get to end after SIGTERM", ge=0
    )
    keys_file: Path | None = _option(
        "Access", None, "TOML file of hashed keys with their limits; see `stonechat keys`"
    )
    private_prefix_cache: bool = _option(
        "Access", False, "never share cached prompt beginnings between keys"
    )
    cors_origin: Names = _option(
        "Access", (), "web origin that may call this server from a browser (repeatable; or *)"
    )
    allowed_host: Names = _option(
        "Access", (), "further name that clients may reach an open server by (repeatable)"
    )
    tls_cert: Path | None = _option("Access", None, "certificate (PEM) to serve HTTPS with")
    tls_key: Path | None = _option("Access", None, "private key (PEM) of the certificate")

    max_queued_requests: int = _option(
        "Limits", 512, "requests that wait for a slot at most; further ones get 429", ge=1
    )
    max_queued_tokens: int | None = _option(
        "Limits",
        None,
        "expected tokens of waiting requests at most (default: 64 times the KV cache)",
        ge=1,
    )
    queue_timeout: float = _option(
        "Limits", 120.0, "seconds a request may wait for a slot, then 504; 0: no limit", ge=0.0
    )
    request_timeout: float = _option(
        "Limits", 900.0, "seconds a request may take in all, then 504; 0: no limit", ge=0.0
    )
    body_timeout: float = _option(
        "Limits", 30.0, "seconds in which a request's body has to arrive, then 408", gt=0.0
    )
    write_timeout: float = _option(
        "Limits", 30.0, "seconds that a client may leave a stream unread, then it is cut", gt=0.0
    )
    max_messages: int = _option("Limits", 4096, "messages in a request at most", ge=1)
    max_json_depth: int = _option("Limits", 64, "nesting of a request's JSON at most", ge=4)
    max_json_values: int = _option(
        "Limits", 50_000, "values in a request's JSON at most, over all lists and objects", ge=64
    )
    max_completion_total: int = _option(
        "Limits", 1_048_576, "choices times max tokens of a request at most", ge=1
    )

    ledger: str = _option(
        "Operations",
        "auto",
        "usage ledger: auto (SQLite in the user's data folder), off, or a SQLAlchemy URL",
    )
    ledger_journal: Path | None = _option(
        "Operations", None, "folder of the ledger's journal (default: in the user's data folder)"
    )
    ledger_text: bool = _option(
        "Operations", False, "keep the text of prompts and answers in the ledger"
    )
    metrics_vllm_names: bool = _option(
        "Operations", False, "serve the metrics under vLLM's names as well"
    )
    metrics_key: bool = _option("Operations", False, "require a key for /metrics")
    otel: bool = _option(
        "Operations", False, "export OpenTelemetry traces (extra `otel`; OTEL_* variables apply)"
    )
    log_format: Literal["text", "json"] = _option(
        "Operations", "text", "log lines for people or as JSON"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "Server", "info", "least severe log lines to show"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and environment; `load_settings` adds the file."""
        return init_settings, env_settings

    def all_api_keys(self) -> list[str]:
        """Keys given directly and keys of the file. Raises `OSError` when it cannot be read."""
        keys = [key.get_secret_value() for key in self.api_key]
        if self.api_key_file is not None:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            keys += [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
        return keys

    def engine_config(self) -> "EngineConfig":
        """The engine's part."""
        from stonechat_models import EngineConfig

        return EngineConfig(
            model=self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            backend=self.backend,
            attention_backend=self.attention_backend,
            device_map=self.device_map,
            max_model_len=self.max_model_len,
            kv_cache_bytes=self.kv_cache_size,
            kv_cache_fraction=self.kv_cache_fraction,
            kv_cache_dtype=self.kv_cache_dtype,
            block_size=self.block_size,
            max_batch_tokens=self.max_batch_tokens,
            max_num_seqs=self.max_num_seqs,
            prefix_caching=self.prefix_caching,
            deterministic=self.deterministic,
            threads=self.threads,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            eager=self.eager,
            overlap=self.overlap,
            prompt_lookup=self.prompt_lookup,
            engine_process=self.engine_process,
        )


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings from flags, environment and a TOML file of the same keys.

    Raises `OSError` or `tomllib.TOMLDecodeError` for the file, `ValidationError` for values.
    """
    values = tomllib.loads(config.read_text(encoding="utf-8")) if config else {}

    class Configured(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            above = Settings.settings_customise_sources(settings_cls, *args, **kwargs)
            return *above, InitSettingsSource(settings_cls, init_kwargs=values)

    return Configured(**flags)
