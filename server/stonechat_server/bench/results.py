"""What a benchmark leaves behind: the JSON file, which is also what the report is drawn from.

Times are in seconds, from the start of the level where nothing else is said.
"""

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
    num_chunks: int = 0
    """Chunks that carried generated text; a chunk may hold more than one token."""
    finish_reason: str | None = None
    done: bool = False
    """The stream ended with `[DONE]`."""
    usage_stated: bool = False
    expected_tokens: int | None = None
    """The tokens asked for, when the end of text is ignored."""
    error: str | None = None
    repeat: int = 0

    @property
    def ttft(self) -> float | None:
        """Time to the first token."""
        return None if self.first_token is None else self.first_token - self.start

    @property
    def e2e(self) -> float:
        """Time from start to the end of the answer."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first."""
        if self.first_token is None or self.completion_tokens < 2:
            return None
        return (self.end - self.first_token) / (self.completion_tokens - 1)


class Quantiles(msgspec.Struct, kw_only=True):
    """Summary of one latency; all None when nothing was measured."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None
    curve: list[float] = []
    """The 0th to 100th percentile, for plots."""


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds a request must keep to count for goodput, in seconds."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None


class LevelResult(msgspec.Struct, kw_only=True):
    """One point of a sweep: a concurrency (closed loop) or a request rate (open loop)."""

    kind: Literal["closed", "open"]
    value: float
    """Requests in flight, or requests a second."""
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
    """Requests a second within the SLO; None when no SLO was given."""
    ttft: Quantiles
    inter_token: Quantiles
    """Gaps between chunks of text as they arrive."""
    tpot: Quantiles
    e2e: Quantiles
    generator_cpu: float
    """Share of one core that the load generator used."""
    roofline_share: float | None = None
    records: list[RequestRecord]

    @property
    def name(self) -> str:
        """How people see the level."""
        if self.kind == "closed":
            return f"{self.value:g} in flight"
        return f"{self.value:g} requests/s"


class Check(msgspec.Struct, kw_only=True):
    """One self-check over all measured requests."""

    name: str
    passed: bool
    detail: str


class Environment(msgspec.Struct, kw_only=True):
    """The machine of the load generator, which is the server's too when it is local."""

    platform: str
    cpu: str
    num_cpus: int
    usable_cpus: int
    memory_bytes: int
    gpus: list[str]
    python: str
    stonechat: str


class Roofline(msgspec.Struct, kw_only=True):
    """The bound memory sets on decoding: every step reads the weights once."""

    bandwidth: float
    """Bytes a second, measured by reading on this machine."""
    weight_bytes: int
    source: str
    """Where `weight_bytes` comes from."""

    @property
    def ceiling(self) -> float:
        """Decode steps a second that the bandwidth allows."""
        return self.bandwidth / self.weight_bytes


class BenchResult(msgspec.Struct, kw_only=True):
    """A whole run."""

    schema_version: int = SCHEMA_VERSION
    label: str
    created_at: str
    model: str
    base_url: str
    server: dict[str, str | int | float | bool | None]
    """What the server says of itself in `/v1/models`."""
    settings: dict[str, str | int | float | bool | list[float] | None]
    environment: Environment
    levels: list[LevelResult]
    checks: list[Check]
    notes: list[str]
    roofline: Roofline | None = None


def write_json(result: BenchResult) -> bytes:
    """The JSON file of a run."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1)


def read_json(data: bytes) -> BenchResult:
    """Read back what `write_json` wrote.

    Raises ValueError when it is something else or of another schema version.
    """
    try:
        result = msgspec.json.decode(data, type=BenchResult)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a benchmark result: {error}") from error
    if result.schema_version != SCHEMA_VERSION:
        raise ValueError(
            f"schema version {result.schema_version}; this program reads {SCHEMA_VERSION}"
        )
    return result
