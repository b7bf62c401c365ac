"""The processor of Voxtral for one clip. That of transformers prepares audio only within messages,
and needs the package mistral-common for it."""

from typing import Any

PLACEHOLDER = "[AUDIO]"
FRAMES_PER_TOKEN = 8
"""Frames of 10 ms for each placeholder: 12.5 of them a second."""


class VoxtralProcessor:
    """Splits a clip into windows of 30 seconds, the last of which silence fills up."""

    audio_token = PLACEHOLDER

    def __init__(self, feature_extractor: Any, token_id: int) -> None:
        self.feature_extractor = self._audio_processor = feature_extractor
        self._token_id = token_id

    def __call__(self, *, audio: list[Any], **_: Any) -> dict[str, Any]:
        """Return what transformers' processors return for the text `PLACEHOLDER`."""
        extractor = self.feature_extractor
        (samples,) = audio
        features = extractor(
            samples,
            sampling_rate=extractor.sampling_rate,
            padding=True,
            truncation=False,
            pad_to_multiple_of=extractor.n_samples,
            return_tensors="pt",
        )["input_features"]
        windows = features.reshape(extractor.feature_size, -1, extractor.nb_max_frames)
        num_tokens = features.shape[-1] // FRAMES_PER_TOKEN
        return {
            "input_ids": [[self._token_id] * num_tokens],
            "input_features": windows.transpose(0, 1),
            "text_replacement_offsets": [[{"replacement": PLACEHOLDER * num_tokens}]],
        }
