"""All settings. Flags, environment variables, TOML keys and docs derive from this class.

A flag beats `STONECHAT_<NAME>`, which beats the TOML file, which beats the default.
"""

import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource

from stonechat_server.model_settings import ModelSettings, Names, models_option
from stonechat_server.options import UserError, detail, option, split

UrlPattern = Annotated[
    str, Field(pattern=r"(?i)^(\*|(\*\.)?[a-z0-9][a-z0-9_.-]*[a-z][a-z0-9-]*)(:\d{1,5})?$")
]
UrlPatterns = Annotated[list[UrlPattern], NoDecode, BeforeValidator(split)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(split)]

server_option = partial(option, group="Server")
access_option = partial(option, group="Access")
limit_option = partial(option, group="Limits")
media_option = partial(option, group="Images, audio, videos and documents")
files_option = partial(option, group="Files and batches")
operations_option = partial(option, group="Operations")


class Settings(ModelSettings):
    """Settings of one server and of its model. Of several models, each may have some of its own."""

    load_at_start: bool = models_option(
        False,
        "load models when the server starts, in place of when a request names them (the first "
        "model of the command line always is)",
    )
    pinned: bool = models_option(False, "never unload a model to make room, or because it is idle")
    keep_alive: float = models_option(
        -1.0,
        "unload a model that has had no request for this many seconds (0: at once; -1: only when "
        "another needs the room)",
        ge=-1.0,
    )
    memory_budget: ByteSize | None = models_option(
        None,
        "memory of a device that all loaded models may take together, such as 24GiB (default: 90% "
        "of what is free when the server starts)",
        ge=1,
    )
    load_timeout: float = models_option(
        600.0,
        "seconds that a request may wait until its model is loaded, before it gets 503",
        gt=0.0,
    )

    host: str = server_option("127.0.0.1", "address to listen on")
    port: int = server_option(
        8000, "port to listen on (0: any free port)", metavar="PORT", ge=0, le=65535
    )
    api_key: Secrets = server_option(
        (), "accept this API key (repeatable; without any key, the server is open to all)"
    )
    api_key_file: Path | None = server_option(
        None, "file with one API key per line; empty lines and lines that start with # are skipped"
    )
    strict_params: bool = server_option(
        False, "refuse requests that have unknown fields (status 400)"
    )
    allow_request_templates: bool = server_option(
        False,
        "let requests bring their own `chat_template`; switch this on only if you trust all "
        "clients, because a template can run for a long time and use up the memory",
    )
    max_body_size: ByteSize = server_option(
        ByteSize(8 * 2**20),
        "largest request body, such as 8MiB; files in it do not count, and have --max-images-size",
        ge=1,
    )
    kept_items_size: ByteSize = server_option(
        ByteSize(64 * 2**20),
        "memory for the responses that /v1/responses stores, such as 64MiB (0: store none)",
    )
    kept_responses: int = server_option(
        10_000, "store at most this many responses (0: store none)", ge=0
    )
    kept_responses_age: float = server_option(
        30 * 86_400.0,
        "drop a stored response that was not used for this many seconds (0: store none)",
        ge=0.0,
    )
    keep_alive_interval: float = server_option(
        15.0,
        "send a comment when a stream has been silent for this many seconds (0: never)",
        ge=0.0,
    )
    shutdown_grace: int = server_option(
        30, "seconds that running requests have to finish after SIGTERM", ge=0
    )
    keys_file: Path | None = access_option(
        None,
        "TOML file of hashed API keys and their limits, written by `stonechat keys` (default: "
        "keys.toml in the user's configuration folder, as soon as it is there; off: none)",
        metavar="FILE",
    )
    private_prefix_cache: bool = access_option(
        False, "never share cached prompt beginnings between keys"
    )
    cors_origin: Names = access_option(
        (), "let web pages of this origin call the server (repeatable; *: any origin)"
    )
    allowed_host: Names = access_option(
        (), "extra host name to accept in the Host header when no API key is set (repeatable)"
    )
    tls_cert: Path | None = access_option(None, "certificate file (PEM); switches to HTTPS")
    tls_key: Path | None = access_option(None, "private key file (PEM) of the certificate")

    max_queued_requests: int = limit_option(
        512, "queue at most this many requests; further ones get 429", ge=1
    )
    max_queued_tokens: int | None = limit_option(
        None,
        "queue at most this many expected tokens in total (default: 64 times the KV cache)",
        ge=1,
    )
    queue_timeout: float = limit_option(
        120.0,
        "seconds that a request may wait in the queue before it gets 504 (0: no limit)",
        ge=0.0,
    )
    request_timeout: float = limit_option(
        900.0, "seconds that a request may take in total before it gets 504 (0: no limit)", ge=0.0
    )
    body_timeout: float = limit_option(
        30.0, "seconds within which the body of a request must arrive, or it gets 408", gt=0.0
    )
    write_timeout: float = limit_option(
        30.0, "close a stream when the client has read nothing for this many seconds", gt=0.0
    )
    max_messages: int = limit_option(4096, "most messages that a request may have", ge=1)
    max_json_depth: int = limit_option(
        64, "deepest nesting that the JSON of a request may have", ge=4
    )
    max_json_values: int = limit_option(
        50_000,
        "most values that the JSON of a request may have, over all lists and objects; eight "
        "integers in a row, such as token ids, count as one",
        ge=64,
    )
    max_completion_total: int = limit_option(
        1_048_576,
        "most completion tokens that a request may ask for: choices times tokens per choice",
        ge=1,
    )

    allow_image_urls: UrlPatterns = media_option(
        (),
        "fetch images, audio and videos whose https: URLs are of this host: images.example.com, "
        "*.example.com for all names below it, or * for any public host; with :PORT for a port "
        "other than 443 (repeatable; default: fetch none)",
        metavar="HOST",
    )
    image_fetch_timeout: float = media_option(
        10.0, "seconds that the fetch of a file may take, redirects included", gt=0.0
    )
    max_images: int = media_option(32, "most images that a request may have", ge=1)
    max_image_size: ByteSize = media_option(
        ByteSize(20 * 2**20), "largest file of an image, such as 20MiB", ge=1
    )
    max_images_size: ByteSize = media_option(
        ByteSize(32 * 2**20),
        "largest size of all images, audio, videos and documents of a request together, such as "
        "32MiB",
        ge=1,
    )
    image_memory: ByteSize = media_option(
        ByteSize(2 * 2**30),
        "memory for the prepared images, audio and videos of all requests that wait or run, such "
        "as 2GiB; beyond it, requests with them get 429, and a request that needs more alone gets "
        "400",
        ge=1,
    )
    max_image_pixels: int = media_option(
        50_000_000,
        "most pixels that an image or a video's frame may have, width times height",
        ge=1,
    )
    max_audio_clips: int = media_option(8, "most audio clips that a request may have", ge=1)
    max_audio_size: ByteSize = media_option(
        ByteSize(25 * 2**20), "largest file of an audio clip, such as 25MiB", ge=1
    )
    max_audio_seconds: float = media_option(
        1800.0, "longest audio clip, in seconds; the model may take less", gt=0.0
    )
    max_videos: int = media_option(4, "most videos that a request may have", ge=1)
    max_video_size: ByteSize = media_option(
        ByteSize(32 * 2**20), "largest file of a video, such as 32MiB", ge=1
    )
    max_video_seconds: float = media_option(600.0, "longest video, in seconds", gt=0.0)
    max_video_frames: int = media_option(
        32, "most frames of a video that the model sees; it may take fewer", ge=1
    )
    max_documents: int = media_option(
        16, "most documents (PDF files and texts) that a request may have", ge=1
    )
    max_document_size: ByteSize = media_option(
        ByteSize(32 * 2**20), "largest file of a document, such as 32MiB", ge=1
    )
    max_document_pages: int = media_option(500, "most pages of a PDF file", ge=1)
    max_document_characters: int = media_option(
        2_000_000, "most characters of all documents of a request together", ge=1
    )
    document_images: Literal["auto", "all"] = media_option(
        "auto",
        "which pages of PDF files a model that takes images also sees as images: those without "
        "text (auto), or all; a request with `detail: high` asks for all",
    )
    document_image_pixels: int = media_option(
        1_500_000, "most pixels of the image of a page, width times height", ge=1
    )

    files_dir: Path | None = files_option(
        None,
        "folder for the files that clients upload and for the results of batches (default: in the "
        "user's data folder; off: keep no files, and run no batches)",
        metavar="DIR",
    )
    max_file_size: ByteSize = files_option(
        ByteSize(200 * 2**20), "largest file that may be uploaded", ge=1
    )
    files_per_key: int = files_option(1000, "keep at most this many files of a key", ge=1)
    file_space_per_key: ByteSize = files_option(
        ByteSize(4 * 2**30),
        "refuse uploads of a key whose files have so many bytes, such as 4GiB; results of batches "
        "count, and are kept in any case",
        ge=1,
    )
    batches_per_key: int = files_option(
        16, "at most this many batches of a key may be unfinished", ge=1
    )
    batch_concurrency: int | None = files_option(
        None,
        "run at most this many requests of batches at the same time (default: as many as the "
        "engine runs sequences, on a CPU at most 32)",
        ge=1,
    )

    ledger: str = operations_option(
        "auto",
        "where usage is recorded: auto (SQLite in the user's data folder), off, the path of a "
        "SQLite file, or a SQLAlchemy URL",
    )
    ledger_required: bool | None = operations_option(
        None,
        "do not start without the ledger; otherwise one that cannot be opened is a warning, and no "
        "usage is recorded (default: only if --ledger names one)",
    )
    ledger_journal: Path | None = operations_option(
        None, "folder for the ledger's journal (default: in the user's data folder)", metavar="DIR"
    )
    ledger_text: bool = operations_option(
        False, "also store the text of prompts and answers in the ledger"
    )
    metrics_vllm_names: bool = operations_option(
        False, "also serve the metrics under the names that vLLM uses"
    )
    metrics_key: bool = operations_option(False, "require an API key for /metrics")
    otel: bool = operations_option(
        False,
        "export OpenTelemetry traces; needs the extra `otel`, and OTEL_* variables configure it",
    )
    log_format: Literal["text", "json"] = operations_option(
        "text", "write log lines as plain text or as JSON"
    )
    log_level: Literal["debug", "info", "warning", "error"] = server_option(
        "info", "show log lines of this level and of more severe ones"
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
        """The keys of `api_key` and `api_key_file`.

        Raises `OSError` if the file cannot be read, and `UserError` for a key that is empty and a
        file that has none: without a key, the server would be open, or closed to all.
        """
        keys = [key.get_secret_value().strip() for key in self.api_key]
        if "" in keys:
            raise UserError("--api-key is empty; leave it out for a server that is open to all")
        if self.api_key_file is not None:
            lines = map(str.strip, self.api_key_file.read_text(encoding="utf-8").splitlines())
            of_file = [line for line in lines if line and line[0] != "#"]
            if not of_file:
                raise UserError(f"{self.api_key_file} has no API key")
            keys += of_file
        return keys


MODEL_SETTINGS = frozenset(ModelSettings.model_fields) - {
    *("models", "served_model_name", "engine_process")
} | {"load_at_start", "pinned", "keep_alive"}
"""The settings that one of several models may have for itself."""


def refuse_for_one_model(settings: Settings) -> None:
    """Raise `UserError` for a setting that means something only where there are several models."""
    for name, field in Settings.model_fields.items():
        if detail(field, "group") == "Several models" and getattr(settings, name) != field.default:
            flag = "--" + name.replace("_", "-")
            raise UserError(
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
