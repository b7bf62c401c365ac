"""The result of a benchmark: the contents of its JSON file, from which the report is made.

Times are in seconds. Those of a request count from the start of its pass over the level.
"""

import statistics
from typing import Literal

import msgspec

SCHEMA_VERSION = 1


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request. `start` is when it was due (open loop) or sent (closed loop)."""

    start: float
    sent: float
    first_token: float | None = None
    end: float
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    image_tokens: int | None = None
    num_images: int = 0
    num_characters: int | None = None
    """Characters of generated text: content, reasoning and tool calls."""
    num_chunks: int = 0
    """Chunks that carried generated text; a chunk may hold more than one token."""
    finish_reason: str | None = None
    done: bool = False
    """The stream ended with `[DONE]`."""
    usage_stated: bool = False
    expected_tokens: int | None = None
    """The requested number of tokens; None if the answer may end before it."""
    error: str | None = None
    repeat: int = 0

    @property
    def ttft(self) -> float | None:
        """Seconds from `start` to the first token."""
        return None if self.first_token is None else self.first_token - self.start

    @property
    def has_cached_images(self) -> bool | None:
        """Whether the cache had most of the images, which stand first; None if it is not known."""
        if not self.image_tokens or self.cached_tokens is None:
            return None
        return 2 * self.cached_tokens >= self.image_tokens

    @property
    def e2e(self) -> float:
        """Seconds from `start` to the end of the answer."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first."""
        if self.first_token is None or self.completion_tokens < 2:
            return None
        return (self.end - self.first_token) / (self.completion_tokens - 1)


class Quantiles(msgspec.Struct, kw_only=True):
    """Distribution of one latency; the values are None if nothing was measured."""

    count: int | None = None
    """Number of samples; None in files of versions that did not count them."""
    mean: float | None = None
    deviation: float | None = None
    """Standard deviation of the samples."""
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None
    curve: list[float] = []
    """All percentiles from 0 to 100, for plots."""


class Speed(msgspec.Struct, kw_only=True):
    """One row of the table of speeds, alone on the server: `pp512` or `tg128`, as in llama-bench.

    `pp` counts prompt tokens that were not cached, over the time to the first token. `tg` counts
    the tokens after the first, over the time from it to the end.
    """

    name: str
    tokens_per_second: list[float]
    """One value for each repeat."""

    @property
    def mean(self) -> float:
        """Mean over the repeats."""
        return statistics.fmean(self.tokens_per_second)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over the repeats; 0 for one repeat."""
        values = self.tokens_per_second
        return statistics.stdev(values) if len(values) > 1 else 0.0


class Perplexity(msgspec.Struct, kw_only=True):
    """How well a model predicts a text: the exponential of the mean loss of its tokens."""

    text: str
    """The name of the file."""
    num_tokens: int
    num_counted: int
    """Tokens whose loss counts: all that have a token before them in their window."""
    context: int
    """Tokens of a window."""
    stride: int
    """Tokens from one window to the next."""
    value: float
    error: float
    """Standard error of `value`, as if the losses were independent."""
    mean_loss: float
    """Mean negative log-probability (natural logarithm) of a token."""
    seconds: float


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """The latency bounds, in seconds, that a request must meet to count as goodput."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None


class LevelResult(msgspec.Struct, kw_only=True):
    """One point of a sweep: a concurrency (closed loop) or a request rate (open loop)."""

    kind: Literal["closed", "open"]
    value: float
    """Requests in flight, or requests per second."""
    num_requests: int
    num_errors: int
    seconds: float
    """Wall time of all repeats together."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    tokens_per_second: float
    requests_per_second: float
    repeat_tokens_per_second: list[float]
    goodput: float | None
    """Requests per second that met the SLO; None if there is no SLO."""
    ttft: Quantiles
    inter_token: Quantiles
    """Gaps between chunks of text as they arrive."""
    tpot: Quantiles
    e2e: Quantiles
    generator_cpu: float
    """Share of one core that the load generator used."""
    machine_load: float | None = None
    """Share of all cores of the load generator's machine that were busy; None if not known."""
    slo_share: float | None = None
    """Share of the requests that met the SLO; None if there is no SLO."""
    roofline_share: float | None = None
    num_images: int = 0
    image_tokens: int | None = None
    """Prompt tokens of images; None if the server does not report them."""
    ttft_new_images: Quantiles = msgspec.field(default_factory=Quantiles)
    """Of the requests whose images the prefix cache did not have."""
    ttft_cached_images: Quantiles = msgspec.field(default_factory=Quantiles)
    records: list[RequestRecord]

    @property
    def images_per_second(self) -> float:
        """Images of answered requests a second."""
        return self.num_images / self.seconds

    @property
    def name(self) -> str:
        """The level's name in tables and reports."""
        if self.kind == "closed":
            return f"{self.value:g} in flight"
        return f"{self.value:g} requests/s"


class Check(msgspec.Struct, kw_only=True):
    """One self-check over all measured requests."""

    name: str
    passed: bool
    detail: str


class Environment(msgspec.Struct, kw_only=True):
    """The machine of the load generator. A local server runs on the same machine."""

    platform: str
    cpu: str
    num_cpus: int
    usable_cpus: int
    memory_bytes: int
    gpus: list[str]
    python: str
    stonechat: str


class Roofline(msgspec.Struct, kw_only=True):
    """The bound that memory sets on decoding: every step reads the weights once."""

    bandwidth: float
    """Measured bytes per second that this machine reads from memory."""
    weight_bytes: int
    source: str
    """Where `weight_bytes` comes from."""

    @property
    def ceiling(self) -> float:
        """Decode steps per second that the bandwidth allows."""
        return self.bandwidth / self.weight_bytes


class BenchResult(msgspec.Struct, kw_only=True):
    """The result of a whole run."""

    schema_version: int = SCHEMA_VERSION
    label: str
    created_at: str
    model: str
    base_url: str
    server: dict[str, str | int | float | bool | None]
    """The facts that the server reports in `/v1/models`."""
    settings: dict[str, str | int | float | bool | list[float] | None]
    environment: Environment
    levels: list[LevelResult]
    checks: list[Check]
    notes: list[str]
    roofline: Roofline | None = None
    speeds: list[Speed] = []
    perplexity: Perplexity | None = None
    in_process: bool = False
    """The engine ran in the process of the load generator: no HTTP is in the figures."""
    slo: Slo | None = None
    load_before: float | None = None
    """Share of all cores that were busy right before the run; None if not known."""

    @property
    def model_name(self) -> str:
        """The model, without the folders of a server that names it by its file."""
        return self.model.rpartition("/")[2] if self.model.startswith("/") else self.model


def write_json(result: BenchResult) -> bytes:
    """The JSON file of a run."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1)


def read_json(data: bytes) -> BenchResult:
    """Read a result that `write_json` wrote.

    Raises ValueError if the data is not a result or has another schema version.
    """
    try:
        result = msgspec.json.decode(data, type=BenchResult)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a benchmark result: {error}") from error
    if result.schema_version != SCHEMA_VERSION:
        raise ValueError(
            f"the result has schema version {result.schema_version}; this program reads version "
            f"{SCHEMA_VERSION}"
        )
    return result
