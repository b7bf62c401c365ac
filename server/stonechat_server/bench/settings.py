"""The settings of a benchmark."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, ByteSize, PositiveFloat, PositiveInt, model_validator

from stonechat_server.bench.results import Slo
from stonechat_server.options import BaseOptions, option, split


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        fields = json.loads(value)
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError("a JSON object such as '{\"top_k\": 20}' is expected")
    return fields


def _size(value: object) -> object:
    """The numbers of `WIDTHxHEIGHT`."""
    if not isinstance(value, str):
        return value
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError("a width and a height in pixels, such as 1024x768, are expected")
    return width, height


def _slo(value: object) -> object:
    """The bounds of `ttft=MS,tpot=MS,e2e=MS` in seconds."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in value.split(",")]
    try:
        return Slo(**{name: float(milliseconds) / 1000 for name, _, milliseconds in parts})
    except (TypeError, ValueError) as error:
        text = "bounds in milliseconds, such as ttft=500,tpot=50,e2e=9000, are expected"
        raise ValueError(text) from error


DEFAULT_IMAGE_SIZE = (512, 512)
DEFAULT_CONTEXT = 512
"""Tokens of a window of `--perplexity`."""
load_option = partial(option, group="load")
prompt_option = partial(option, group="prompts")
quality_option = partial(option, group="perplexity")
result_option = partial(option, group="results")


class BenchSettings(BaseOptions):
    """Settings of one run: lengths in tokens, times in seconds, rates in requests per second."""

    base_url: str = option(
        "http://127.0.0.1:8000/v1", "API root of any OpenAI-compatible server", metavar="URL"
    )
    in_process: str | None = option(
        None,
        "measure a model in this process, without a server and without HTTP: a GGUF file, a folder "
        "or a name of the hub",
        metavar="MODEL",
    )
    model: str | None = option(None, "model to request (default: the first that the server lists)")
    api_key: str | None = option(None, "API key", variable="OPENAI_API_KEY")
    verify_tls: bool = option(True, "do not verify the server's certificate", flag="--insecure")

    concurrency: Annotated[tuple[PositiveInt, ...], BeforeValidator(split)] = load_option(
        (1, 4, 16), "closed loop: requests in flight, one level per number", metavar="N,N,…"
    )
    rates: Annotated[tuple[PositiveFloat, ...], BeforeValidator(split)] = load_option(
        (), "open loop instead: Poisson arrivals at these rates (requests/s)",
        flag="--rate", metavar="R,R,…",
    )  # fmt: skip
    sweep: bool = load_option(
        False, "closed loop: double the requests in flight until the throughput stops rising"
    )
    throughput: bool = load_option(
        False, "send all requests at once: the most tokens a second, whatever the latency"
    )
    pp: Annotated[tuple[PositiveInt, ...], BeforeValidator(split)] = load_option(
        (), "speed of prompts of these lengths, one at a time, instead of levels of load",
        metavar="N,N,…",
    )  # fmt: skip
    tg: Annotated[tuple[PositiveInt, ...], BeforeValidator(split)] = load_option(
        (), "speed of generating answers of these lengths, one at a time", metavar="N,N,…"
    )
    num_requests: PositiveInt | None = load_option(
        None,
        "requests per level (default: 32 with --rate, else 4 per request in flight, at least 8)",
        flag="--requests",
        metavar="N",
    )
    duration: PositiveFloat | None = load_option(
        None, "length of a level, instead of a number of requests", metavar="SECONDS"
    )
    ramp: float = load_option(
        0.0, "time over which the load of a level rises", flag="--ramp-up", metavar="SECONDS", ge=0
    )
    warmup: int = load_option(2, "unmeasured requests before each level", metavar="N", ge=0)
    repeats: PositiveInt | None = load_option(
        None, "how often to run each level (default: 1; for --pp and --tg 5)", metavar="N"
    )
    timeout: float = load_option(600.0, "longest duration of a request", metavar="SECONDS")

    input_tokens: PositiveInt = prompt_option(
        128, "tokens of a prompt, including the chat template", metavar="N"
    )
    output_tokens: PositiveInt = prompt_option(
        128, "tokens of an answer; a maximum where ignore_eos has no effect", metavar="N"
    )
    prefix_share: float = prompt_option(
        0.0, "share of each prompt, 0 to 1, that is a common prefix of all prompts", ge=0, le=1
    )
    images: int = prompt_option(
        0, "synthetic images in each prompt, beside its --input-tokens of text", metavar="N", ge=0
    )
    image_size: Annotated[tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_size)] = (
        prompt_option(
            None, "width and height of --images in pixels (default: 512x512)", metavar="WxH"
        )
    )
    same_image: bool = prompt_option(
        False, "the same images in all prompts, which shows what the caches save"
    )
    prompts_file: Path | None = prompt_option(
        None, "file of prompts: plain text, one prompt per line, or .jsonl", flag="--prompts"
    )
    sharegpt: Path | None = prompt_option(
        None, "file of prompts: ShareGPT-style JSON", metavar="FILE"
    )
    ignore_eos: bool = prompt_option(True, "let answers end where the model ends them")
    temperature: float = prompt_option(
        0.0, "temperature, sent with every request", metavar="NUMBER"
    )
    extra_body: Annotated[Mapping[str, object], BeforeValidator(_json_object)] = prompt_option(
        {}, "JSON object whose fields are sent with every request", metavar="JSON"
    )
    seed: int = prompt_option(0, "seed of prompts and arrival times")

    perplexity: Path | None = quality_option(
        None,
        "measure no speed, but how well the model predicts this text: its perplexity",
        metavar="TEXTFILE",
    )
    context_tokens: int | None = quality_option(
        None, "tokens of the text that the model sees at a time (default: 512)", metavar="N", ge=2
    )
    stride: PositiveInt | None = quality_option(
        None,
        "tokens from one such window to the next (default: half of --context-tokens)",
        metavar="N",
    )

    slo: Annotated[Slo | None, BeforeValidator(_slo)] = result_option(
        None, "latency bounds that a request must meet to count as goodput",
        metavar="ttft=MS,tpot=MS,e2e=MS",
    )  # fmt: skip
    label: str | None = result_option(None, "name of this run in reports")
    roofline: bool = result_option(
        False, "measure this machine's memory bandwidth, and report the share that decoding uses"
    )
    weight_bytes: ByteSize | None = result_option(
        None, "size of the weights for --roofline, such as 96MB, if the server does not report it",
        ge=1,
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> Self:
        if self.prompts_file is not None and self.sharegpt is not None:
            raise ValueError("--prompts and --sharegpt cannot be given together")
        return self

    @model_validator(mode="after")
    def _images_are_in_synthetic_prompts(self) -> Self:
        others = {
            "--prompts": self.prompts_file is not None,
            "--sharegpt": self.sharegpt is not None,
            "--pp and --tg": self.measures_speeds,
            "--perplexity": self.perplexity is not None,
        }
        for name, is_given in others.items():
            if self.images and is_given:
                raise ValueError(f"--images and {name} cannot be given together")
        if self.same_image and not self.images:
            raise ValueError("--same-image is for --images")
        return self

    @model_validator(mode="after")
    def _one_kind_of_load(self) -> Self:
        kinds = {
            "--rate": bool(self.rates),
            "--sweep": self.sweep,
            "--throughput": self.throughput,
            "--pp and --tg": self.measures_speeds,
            "--perplexity": self.perplexity is not None,
        }
        given = [name for name, is_given in kinds.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} cannot be given together")
        if self.duration is not None and self.num_requests is not None:
            raise ValueError("--duration and --requests cannot be given together")
        if self.duration is not None and given not in ([], ["--rate"], ["--sweep"]):
            raise ValueError(f"--duration has no meaning with {given[0]}")
        return self

    @model_validator(mode="after")
    def _windows_overlap(self) -> Self:
        if (self.context_tokens or self.stride) and self.perplexity is None:
            raise ValueError("--context-tokens and --stride are for --perplexity")
        if self.stride is not None and self.stride > (self.context_tokens or DEFAULT_CONTEXT):
            raise ValueError("--stride must not be more than --context-tokens: it would skip text")
        return self

    @model_validator(mode="after")
    def _no_server_in_process(self) -> Self:
        if self.in_process is not None:
            names = {"base_url": "--base-url", "model": "--model", "extra_body": "--extra-body"}
            given = [flag for name, flag in names.items() if name in self.model_fields_set]
            if given:
                raise ValueError(f"{given[0]} is for a server; --in-process measures without one")
        return self

    @property
    def measures_speeds(self) -> bool:
        """Whether the run fills the table of speeds instead of levels of load."""
        return bool(self.pp or self.tg)

    def requests_of_level(self, in_flight: int | None) -> int:
        """The number of requests of a level; `in_flight` is None for an open loop."""
        if self.num_requests is not None:
            return self.num_requests
        if self.throughput:
            return 256
        return 32 if in_flight is None else max(8, 4 * in_flight)

    def described(self) -> dict[str, str | int | float | bool | list[float] | None]:
        """The settings as the result file has them, without the API key."""
        names = {
            *("rates", "num_requests", "input_tokens", "output_tokens", "prefix_share", "sharegpt"),
            *("prompts_file", "ignore_eos", "temperature", "warmup", "repeats", "seed"),
            *("sweep", "throughput", "pp", "tg", "duration", "ramp"),
            *("images", "image_size", "same_image"),
            *("in_process", "perplexity", "context_tokens", "stride"),
        }
        return {
            "concurrency": [] if self.rates else [float(value) for value in self.concurrency],
            **self.model_dump(mode="json", include=names),
            "extra_body": str(dict(self.extra_body)) if self.extra_body else None,
            **{f"slo_{name}": getattr(self.slo, name, None) for name in ("ttft", "tpot", "e2e")},
        }
