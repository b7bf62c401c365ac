"""Metrics of the images, audio, videos and documents of requests."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from stonechat_server.observability.vllm_names import PREFIX

LABELS = ("model_name",)


class MediaMetrics:
    """Counts what was loaded: files, their bytes, the time that it took, and their length."""

    def __init__(self, registry: CollectorRegistry, buckets: Sequence[float]) -> None:
        self._of: dict[str, _OfModality] = {
            "image": _OfModality(registry, buckets, "images", "image", "images"),
            "audio": _OfModality(registry, buckets, "audio_clips", "audio", "audio clips"),
            "video": _OfModality(registry, buckets, "videos", "video", "videos"),
            "document": _OfModality(registry, buckets, "documents", "document", "documents"),
        }
        self._durations: dict[str, Counter] = {
            "audio": _durations(registry, "audio", "audio clips"),
            "video": _durations(registry, "video", "videos"),
        }

    def loaded(
        self,
        model: str,
        modality: str,
        *,
        num_files: int,
        num_bytes: int,
        duration: float,
        seconds: float,
    ) -> None:
        """Count the files of a kind of a request, which took so many seconds to load."""
        metrics = self._of[modality]
        metrics.files.labels(model).inc(num_files)
        metrics.bytes.labels(model).inc(num_bytes)
        metrics.seconds.labels(model).observe(seconds)
        if modality in self._durations:
            self._durations[modality].labels(model).inc(duration)


def _durations(registry: CollectorRegistry, prefix: str, named: str) -> Counter:
    name = f"{PREFIX}{prefix}_seconds"
    return Counter(name, f"Length of the {named}", LABELS, registry=registry)


class _OfModality:
    """The metrics that all kinds of files have."""

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
