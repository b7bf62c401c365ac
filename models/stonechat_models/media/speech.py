"""The feature extractor of Whisper, for one clip at a time: no token of a prompt stands for a clip.

Transformers is only imported where it is loaded.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_models.media.processor_loading import LOCAL
from stonechat_models.media.records import UnusableMediaError
from stonechat_models.model_file import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

MODEL_TYPES = frozenset({"whisper"})
LEAST_SECONDS = 0.1


class SpeechProcessor:
    """Turns the samples of a clip of any length into features."""

    placeholder = ""

    def __init__(self, folder: Path) -> None:
        """Raises what transformers raises for a folder without a feature extractor."""
        from transformers import WhisperFeatureExtractor

        self.extractor: Any = WhisperFeatureExtractor.from_pretrained(folder, **LOCAL)

    @property
    def sampling_rate(self) -> int:
        """Samples a second of the clips that `prepare` takes."""
        return int(self.extractor.sampling_rate)

    def check_seconds(self, seconds: float) -> None:
        """Raise `UnusableMediaError` for a clip of this length, which is none but a short one."""
        if seconds < LEAST_SECONDS:
            raise UnusableMediaError("unfit", f"is shorter than {LEAST_SECONDS} seconds")

    def prepare(self, medium: Any) -> tuple[str, int, dict[str, "np.ndarray[Any, Any]"]]:
        """Return no text, no tokens, and the features of all samples: float32[bands, frames]."""
        features = self.extractor(
            medium,
            sampling_rate=self.sampling_rate,
            padding="longest",
            truncation=False,
            return_tensors="np",
        )["input_features"]
        return "", 0, {"input_features": features[0]}

    def cut(
        self, num_tokens: int, arrays: "Mapping[str, np.ndarray[Any, Any]]"
    ) -> "list[tuple[int, Mapping[str, np.ndarray[Any, Any]]]]":
        """Return one piece: the engine cuts windows where it has heard a pause."""
        return [(num_tokens, arrays)]


def transcribes_speech(folder: Path) -> bool:
    """Whether the model of a folder does nothing but transcribe speech."""
    return (read_json(folder / "config.json") or {}).get("model_type") in MODEL_TYPES
