"""Metrics of the images and audio of requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram

from stonechat_server.observability.vllm_names import PREFIX

if TYPE_CHECKING:
    from stonechat_models import Modality

LABELS = ("model_name",)


class MediaMetrics:
    """Counts what was loaded: files, their bytes, the time that it took, and seconds of sound."""

    def __init__(self, registry: CollectorRegistry, buckets: Sequence[float]) -> None:
        self._of: dict[Modality, _OfModality] = {
            "image": _OfModality(registry, buckets, "images", "image", "images"),
            "audio": _OfModality(registry, buckets, "audio_clips", "audio", "audio clips"),
        }
        name = PREFIX + "audio_seconds"
        self._duration = Counter(name, "Length of the audio clips", LABELS, registry=registry)

    def loaded(
        self,
        model: str,
        modality: "Modality",
        *,
        num_files: int,
        num_bytes: int,
        duration: float,
        seconds: float,
    ) -> None:
        """Count the images or the audio of a request, which took so many seconds to load."""
        metrics = self._of[modality]
        metrics.files.labels(model).inc(num_files)
        metrics.bytes.labels(model).inc(num_bytes)
        metrics.seconds.labels(model).observe(seconds)
        if modality == "audio":
            self._duration.labels(model).inc(duration)


class _OfModality:
    """The metrics that images and audio both have."""

    def __init__(
        self,
        registry: CollectorRegistry,
        buckets: Sequence[float],
        files: str,
        prefix: str,
        named: str,
    ) -> None:
        about = f"{named.capitalize()} of requests that were loaded"
        self.files = Counter(PREFIX + files, about, LABELS, registry=registry)
        self.bytes = Counter(
            f"{PREFIX}{prefix}_bytes",
            f"Bytes of the files of these {named}",
            LABELS,
            registry=registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}{prefix}_load_seconds",
            f"Time to read or fetch the {named} of a request and to prepare them for the model",
            LABELS,
            buckets=buckets,
            registry=registry,
        )
