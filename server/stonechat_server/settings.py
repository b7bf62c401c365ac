"""All settings. Flags, environment variables, TOML keys and docs derive from this class.

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

from stonechat_server.options import detail, option, split
from stonechat_server.tool_formats.select import FORMATS

if TYPE_CHECKING:
    from stonechat_models import EngineConfig

    ToolFormatName = str
else:
    ToolFormatName = Literal["auto", *FORMATS]

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
Names = Annotated[list[str], NoDecode, BeforeValidator(split)]
UrlPattern = Annotated[
    str, Field(pattern=r"(?i)^(\*|(\*\.)?[a-z0-9][a-z0-9_.-]*[a-z][a-z0-9-]*)(:\d{1,5})?$")
]
UrlPatterns = Annotated[list[UrlPattern], NoDecode, BeforeValidator(split)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(split)]


def _option(group: str, default: Any, description: str, **details: Any) -> Any:
    return option(default, description, group=group, **details)


class Settings(BaseSettings):
    """Settings of one server. Lists are comma-separated in environment variables."""

    model_config = SettingsConfigDict(
        env_prefix="STONECHAT_",
        extra="forbid",
        protected_namespaces=(),
        frozen=True,
        defer_build=True,
    )

    model: str = _option(
        "Model",
        DEFAULT_MODEL,
        "name on the Hugging Face hub (owner/name, owner/name:Q4_K_M, owner/name/file.gguf, or a "
        "URL), local folder with safetensors, or GGUF file",
        flag="MODEL",
    )
    revision: str | None = _option("Model", None, "branch, tag or commit of the Hugging Face model")
    adapter: str | None = _option(
        "Model",
        None,
        "merge a LoRA adapter into the model's weights: its folder, or its name on the hub",
    )
    lora: Names = _option(
        "Model",
        (),
        "serve a LoRA adapter, its folder or its name on the hub, as one more model of this name, "
        "in the same steps as the model (repeatable; runs through PyTorch)",
        metavar="NAME=DIR",
    )
    trust_remote_code: bool = _option(
        "Model", False, "run the Python code that comes with the model"
    )
    allow_pickle: bool = _option(
        "Model", False, "load pickled weights; a pickle can run any code of its author"
    )
    generation_config: Literal["model", "none"] = _option(
        "Model",
        "model",
        "sampling parameters of requests that leave them out (model: what its "
        "generation_config.json recommends; none: the defaults of the OpenAI API)",
    )
    embeddings: bool = _option(
        "Model",
        False,
        "also serve a model that generates for embeddings: the final hidden state of a text's last "
        "token (models for embeddings need no flag)",
    )
    served_model_name: Names = _option(
        "Chat", (), "name that requests give as `model` (repeatable; default: the model's name)"
    )
    chat_template: str | None = _option(
        "Chat",
        None,
        "Jinja chat template to use instead of the model's own; a file, or the template's text",
    )
    tool_format: ToolFormatName = _option(
        "Chat", "auto", "how the model writes tool calls (auto: detect it from the chat template)"
    )
    special_tokens_as_text: bool = _option(
        "Chat",
        False,
        "encode special tokens that clients write into their texts as ordinary text, so that no "
        "text can end its turn and begin another",
    )
    schema_in_prompt: bool = _option(
        "Chat", True, "describe the required answer format to the model in the system message"
    )
    reasoning: bool = _option("Chat", True, "separate the model's reasoning from its answer")
    bare_calls: bool = _option(
        "Chat",
        True,
        "read an answer that begins with a call's JSON, without the format's marks, as that call",
    )
    stop_repeated_calls: bool = _option(
        "Chat", True, "end an answer before a call that repeats an earlier call of the same answer"
    )

    device: str = _option(
        "Computing", "auto", "device to compute on: auto, cpu, cuda, cuda:1 or mps"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "Computing", "auto", "data type of the weights and activations"
    )
    quantize: Literal["auto", "none", "int8", "int4", "fp8"] = _option(
        "Computing",
        "auto",
        "quantise the weights (auto: keep quantised weights as they are where the device's kernels "
        "can, quantise no other model; none: use floats; fp8 needs a GPU of compute capability 8.9 "
        "or more)",
    )
    backend: Literal["auto", "native", "transformers"] = _option(
        "Computing",
        "auto",
        "code that computes the model (native: compiled CPU kernels; transformers: the model's "
        "PyTorch code)",
    )
    attention_backend: Literal["auto", "flashinfer", "triton", "batched", "sdpa"] = _option(
        "Computing",
        "auto",
        "attention kernel of a model that PyTorch computes; compiled CPU kernels have their own",
    )
    device_map: str | None = _option(
        "Computing", None, "set to auto to spread a model over several devices"
    )
    tensor_parallel: int = _option(
        "Computing",
        1,
        "split every layer of the model between this many devices: the first CUDA devices, or as "
        "many processes on a CPU",
        ge=1,
        le=64,
    )
    threads: int | None = _option(
        "Computing", None, "number of CPU threads that the engine uses", ge=1
    )
    deterministic: bool = _option(
        "Computing", False, "use only kernels whose results do not depend on the batch"
    )
    eager: bool = _option("Computing", False, "do not use CUDA graphs")
    overlap: bool | None = _option(
        "Computing",
        None,
        "start the next step before reading the previous step's tokens (default: only on CUDA)",
    )
    prompt_lookup: bool | None = _option(
        "Computing",
        None,
        "draft tokens from repetitions in the context and verify several per step; answers do not "
        "change (default: with the compiled CPU kernels, where that is measured to be faster)",
    )
    draft_model: str | None = _option(
        "Computing",
        None,
        "a smaller model of the same tokens, named like MODEL, that drafts tokens where that is "
        "measured to be faster; answers do not change (only on CPUs)",
    )
    num_draft_tokens: int = _option(
        "Computing",
        8,
        "how many tokens the draft model drafts at most for a sequence in a step",
        ge=1,
        le=32,
    )
    engine_process: bool | None = _option(
        "Computing",
        None,
        "run the engine in its own process and restart it after a crash (default: only on CUDA)",
    )

    max_model_len: int | None = _option(
        "Memory and batching", None, "context length in tokens (default: the model's own)", ge=1
    )
    kv_cache_size: ByteSize | None = _option(
        "Memory and batching", None, "memory for the KV cache, such as 2GiB"
    )
    kv_cache_fraction: float | None = _option(
        "Memory and batching",
        None,
        "share of the memory left after loading to use for the KV cache, if no size is set",
        gt=0.0,
        le=1.0,
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "int8", "fp8"] = _option(
        "Memory and batching",
        "auto",
        "data type of the cached keys and values (auto: that of the activations, or bfloat16 in "
        "compiled CPU kernels; only these have int8, and they have no fp8)",
    )
    image_cache_size: ByteSize = _option(
        "Memory and batching",
        ByteSize(256 * 2**20),
        "memory for encoded images, such as 256MiB, so that the same image in a later request is "
        "not encoded again; on a GPU of the GPU's memory, in what the KV cache leaves",
    )
    block_size: int = _option("Memory and batching", 16, "tokens per block of the KV cache", ge=1)
    max_batch_tokens: int | None = _option(
        "Memory and batching", None, "compute at most this many tokens per step", ge=1
    )
    max_num_seqs: int | None = _option(
        "Memory and batching", None, "run at most this many sequences at the same time", ge=1
    )
    prefix_caching: bool = _option(
        "Memory and batching",
        True,
        "keep the KV cache of prompts and reuse it for prompts with the same beginning",
    )

    models: dict[str, dict[str, Any]] = _option(
        "Several models", {}, "the models of the TOML file: a table [models.NAME] each"
    )
    load_at_start: bool = _option(
        "Several models",
        False,
        "load models when the server starts, in place of when a request names them (the first "
        "model of the command line always is)",
    )
    pinned: bool = _option(
        "Several models", False, "never unload a model to make room, or because it is idle"
    )
    keep_alive: float = _option(
        "Several models",
        -1.0,
        "unload a model that has had no request for this many seconds (0: at once; -1: only when "
        "another needs the room)",
        ge=-1.0,
    )
    memory_budget: ByteSize | None = _option(
        "Several models",
        None,
        "memory of a device that all loaded models may take together, such as 24GiB (default: 90% "
        "of what is free when the server starts)",
        ge=1,
    )
    load_timeout: float = _option(
        "Several models",
        600.0,
        "seconds that a request may wait until its model is loaded, before it gets 503",
        gt=0.0,
    )

    host: str = _option("Server", "127.0.0.1", "address to listen on")
    port: int = _option("Server", 8000, "port to listen on (0: any free port)", ge=0, le=65535)
    api_key: Secrets = _option(
        "Server", (), "accept this API key (repeatable; without any key, the server is open to all)"
    )
    api_key_file: Path | None = _option(
        "Server",
        None,
        "file with one API key per line; empty lines and lines that start with # are skipped",
    )
    strict_params: bool = _option(
        "Server", False, "refuse requests that have unknown fields (status 400)"
    )
    allow_request_templates: bool = _option(
        "Server",
        False,
        "let requests bring their own `chat_template`; switch this on only if you trust all "
        "clients, because a template can run for a long time and use up the memory",
    )
    max_body_size: ByteSize = _option(
        "Server",
        ByteSize(8 * 2**20),
        "largest request body, such as 8MiB; images in it do not count, and have --max-images-size",
        ge=1,
    )
    kept_items_size: ByteSize = _option(
        "Server",
        ByteSize(16 * 2**20),
        "memory for items of answers that clients of /v1/responses may refer to (0: keep none)",
    )
    keep_alive_interval: float = _option(
        "Server",
        15.0,
        "send a comment when a stream has been silent for this many seconds (0: never)",
        ge=0.0,
    )
    shutdown_grace: int = _option(
        "Server", 30, "seconds that running requests have to finish after SIGTERM", ge=0
    )
    keys_file: Path | None = _option(
        "Access",
        None,
        "TOML file of hashed API keys and their limits, written by `stonechat keys` (default: "
        "keys.toml in the user's configuration folder, as soon as it is there; off: none)",
        metavar="FILE",
    )
    private_prefix_cache: bool = _option(
        "Access", False, "never share cached prompt beginnings between keys"
    )
    cors_origin: Names = _option(
        "Access", (), "let web pages of this origin call the server (repeatable; *: any origin)"
    )
    allowed_host: Names = _option(
        "Access",
        (),
        "extra host name to accept in the Host header when no API key is set (repeatable)",
    )
    tls_cert: Path | None = _option("Access", None, "certificate file (PEM); switches to HTTPS")
    tls_key: Path | None = _option("Access", None, "private key file (PEM) of the certificate")

    max_queued_requests: int = _option(
        "Limits", 512, "queue at most this many requests; further ones get 429", ge=1
    )
    max_queued_tokens: int | None = _option(
        "Limits",
        None,
        "queue at most this many expected tokens in total (default: 64 times the KV cache)",
        ge=1,
    )
    queue_timeout: float = _option(
        "Limits",
        120.0,
        "seconds that a request may wait in the queue before it gets 504 (0: no limit)",
        ge=0.0,
    )
    request_timeout: float = _option(
        "Limits",
        900.0,
        "seconds that a request may take in total before it gets 504 (0: no limit)",
        ge=0.0,
    )
    body_timeout: float = _option(
        "Limits",
        30.0,
        "seconds within which the body of a request must arrive, or it gets 408",
        gt=0.0,
    )
    write_timeout: float = _option(
        "Limits",
        30.0,
        "close a stream when the client has read nothing for this many seconds",
        gt=0.0,
    )
    max_messages: int = _option("Limits", 4096, "most messages that a request may have", ge=1)
    max_json_depth: int = _option(
        "Limits", 64, "deepest nesting that the JSON of a request may have", ge=4
    )
    max_json_values: int = _option(
        "Limits",
        50_000,
        "most values that the JSON of a request may have, over all lists and objects; eight "
        "integers in a row, such as token ids, count as one",
        ge=64,
    )
    max_completion_total: int = _option(
        "Limits",
        1_048_576,
        "most completion tokens that a request may ask for: choices times tokens per choice",
        ge=1,
    )

    allow_image_urls: UrlPatterns = _option(
        "Images",
        (),
        "fetch images whose https: URLs are of this host: images.example.com, *.example.com for "
        "all names below it, or * for any public host; with :PORT for a port other than 443 "
        "(repeatable; default: fetch none)",
        metavar="HOST",
    )
    image_fetch_timeout: float = _option(
        "Images", 10.0, "seconds that the fetch of an image may take, redirects included", gt=0.0
    )
    max_images: int = _option("Images", 32, "most images that a request may have", ge=1)
    max_image_size: ByteSize = _option(
        "Images", ByteSize(20 * 2**20), "largest file of an image, such as 20MiB", ge=1
    )
    max_images_size: ByteSize = _option(
        "Images",
        ByteSize(32 * 2**20),
        "largest size of all images of a request together, such as 32MiB",
        ge=1,
    )
    image_memory: ByteSize = _option(
        "Images",
        ByteSize(2 * 2**30),
        "memory for the prepared images of all requests that wait or run, such as 2GiB; beyond it, "
        "requests with images get 429, and a request that needs more alone gets 400",
        ge=1,
    )
    max_image_pixels: int = _option(
        "Images", 50_000_000, "most pixels that an image may have, width times height", ge=1
    )

    files_dir: Path | None = _option(
        "Files and batches",
        None,
        "folder for the files that clients upload and for the results of batches (default: in the "
        "user's data folder; off: keep no files, and run no batches)",
        metavar="DIR",
    )
    max_file_size: ByteSize = _option(
        "Files and batches", ByteSize(200 * 2**20), "largest file that may be uploaded", ge=1
    )
    files_per_key: int = _option(
        "Files and batches", 1000, "keep at most this many files of a key", ge=1
    )
    file_space_per_key: ByteSize = _option(
        "Files and batches",
        ByteSize(4 * 2**30),
        "refuse uploads of a key whose files have so many bytes, such as 4GiB; results of batches "
        "count, and are kept in any case",
        ge=1,
    )
    batches_per_key: int = _option(
        "Files and batches", 16, "at most this many batches of a key may be unfinished", ge=1
    )
    batch_concurrency: int | None = _option(
        "Files and batches",
        None,
        "run at most this many requests of batches at the same time (default: as many as the "
        "engine runs sequences, on a CPU at most 32)",
        ge=1,
    )

    ledger: str = _option(
        "Operations",
        "auto",
        "where usage is recorded: auto (SQLite in the user's data folder), off, the path of a "
        "SQLite file, or a SQLAlchemy URL",
    )
    ledger_required: bool | None = _option(
        "Operations",
        None,
        "do not start without the ledger; otherwise one that cannot be opened is a warning, and no "
        "usage is recorded (default: only if --ledger names one)",
    )
    ledger_journal: Path | None = _option(
        "Operations", None, "folder for the ledger's journal (default: in the user's data folder)"
    )
    ledger_text: bool = _option(
        "Operations", False, "also store the text of prompts and answers in the ledger"
    )
    metrics_vllm_names: bool = _option(
        "Operations", False, "also serve the metrics under the names that vLLM uses"
    )
    metrics_key: bool = _option("Operations", False, "require an API key for /metrics")
    otel: bool = _option(
        "Operations",
        False,
        "export OpenTelemetry traces; needs the extra `otel`, and OTEL_* variables configure it",
    )
    log_format: Literal["text", "json"] = _option(
        "Operations", "text", "write log lines as plain text or as JSON"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "Server", "info", "show log lines of this level and of more severe ones"
    )

    _flags: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """The flags of the command line that these settings come from."""
        return [f"--{name.replace('_', '-')}" for name in self._flags]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the flags, then the environment. `load_settings` adds the file."""
        return init_settings, env_settings

    def all_api_keys(self) -> list[str]:
        """The keys of `api_key` and `api_key_file`. Raises `OSError` if the file cannot be read."""
        keys = [key.get_secret_value() for key in self.api_key]
        if self.api_key_file is not None:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            keys += [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
        return keys

    def engine_config(self) -> "EngineConfig":
        """The settings of the engine."""
        from stonechat_models import EngineConfig

        values = {name: getattr(self, name) for name in ENGINE_SETTINGS}
        values["lora"] = tuple(self.lora)
        return EngineConfig(
            kv_cache_bytes=values.pop("kv_cache_size"),
            image_cache_bytes=values.pop("image_cache_size"),
            **values,
        )


ENGINE_SETTINGS = tuple(
    name
    for name, field in Settings.model_fields.items()
    if detail(field, "group") in ("Model", "Computing", "Memory and batching")
)
"""The settings that make the `EngineConfig`."""

MODEL_SETTINGS = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if detail(field, "group") in ("Model", "Chat", "Computing", "Memory and batching")
) - {"served_model_name", "engine_process"} | {"load_at_start", "pinned", "keep_alive"}
"""The settings that one of several models may have for itself."""


def refuse_for_one_model(settings: Settings) -> None:
    """Raise `ValueError` for a setting that means something only where there are several models."""
    for name, field in Settings.model_fields.items():
        if detail(field, "group") == "Several models" and getattr(settings, name) != field.default:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is for a server of several models: name more than one, or put the model "
                "into a table [models.NAME] of the TOML file"
            )


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Read settings from flags, the environment and a TOML file with the same names.

    Raises `OSError` or `tomllib.TOMLDecodeError` for a bad file, `ValidationError` for bad values.
    """
    values = tomllib.loads(config.read_text(encoding="utf-8")) if config else {}

    class Configured(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = Settings.settings_customise_sources(settings_cls, *args, **kwargs)
            return *sources, InitSettingsSource(settings_cls, init_kwargs=values)

    settings = Configured(**flags)
    settings._flags = tuple(flags)
    return settings
