"""The settings of a benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stonechat_server.bench.results import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """Settings of one run: lengths in tokens, times in seconds, rates in requests per second."""

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str | None = None
    """None: the first model that the server lists."""
    api_key: str | None = None
    verify_tls: bool = True
    concurrency: tuple[int, ...] = (1, 4, 16)
    rates: tuple[float, ...] = ()
    """If not empty: open loop at these rates, instead of the concurrency sweep."""
    num_requests: int | None = None
    """Requests per level. None: 32 for a rate, else four per request in flight, at least eight."""
    input_tokens: int = 128
    output_tokens: int = 128
    prefix_share: float = 0.0
    prompts_file: Path | None = None
    sharegpt: Path | None = None
    ignore_eos: bool = True
    temperature: float = 0.0
    extra_body: Mapping[str, object] = field(default_factory=dict)
    warmup: int = 2
    """Unmeasured requests before each level."""
    repeats: int = 1
    seed: int = 0
    timeout: float = 600.0
    slo: Slo | None = None
    roofline: bool = False
    weight_bytes: int | None = None
    label: str | None = None

    def requests_of_level(self, in_flight: int | None) -> int:
        """The number of requests of a level; `in_flight` is None for an open loop."""
        if self.num_requests is not None:
            return self.num_requests
        return 32 if in_flight is None else max(8, 4 * in_flight)

    def described(self) -> dict[str, str | int | float | bool | list[float] | None]:
        """The settings as the result file has them, without the API key."""
        return {
            "concurrency": [] if self.rates else [float(value) for value in self.concurrency],
            "rates": list(self.rates),
            "num_requests": self.num_requests,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "prefix_share": self.prefix_share,
            "prompts_file": str(self.prompts_file) if self.prompts_file else None,
            "sharegpt": str(self.sharegpt) if self.sharegpt else None,
            "ignore_eos": self.ignore_eos,
            "temperature": self.temperature,
            "extra_body": str(dict(self.extra_body)) if self.extra_body else None,
            "warmup": self.warmup,
            "repeats": self.repeats,
            "seed": self.seed,
            "slo_ttft": self.slo.ttft if self.slo else None,
            "slo_tpot": self.slo.tpot if self.slo else None,
            "slo_e2e": self.slo.e2e if self.slo else None,
        }
