"""The Hugging Face processor of a model, for one image or audio clip at a time.

Transformers is only imported where a processor is loaded. Nothing is fetched, and no code of a
model's folder runs.
"""

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.pieces import piece_size
from stonechat_models.media.processor_loading import load_processor
from stonechat_models.media.records import UnusableMediaError, too_long
from stonechat_models.model_file import reason_of
from stonechat_models.types import MediaInput, MediaTensor, Modality

if TYPE_CHECKING:
    import numpy as np

TEST_SIZE = (96, 64)
"""Pixels of the image that a processor must take before its model is served with images."""
TEST_SECONDS = 1.0
LONG_SECONDS = 10.0
"""All models take clips that are shorter."""
END_SECONDS = 0.1
"""How much of the end of a clip is changed to see whether its processor reads it."""
LARGE_SIZE = (2048, 2048)
"""Pixels of the image by which the memory of the vision tower is measured."""
TEXT_OUTPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "labels")


def pillow_refusal() -> str:
    """Return that Pillow is missing; an empty text if it is there."""
    if find_spec("PIL") is None:
        return "images need Pillow: pip install 'stonechat[vision]'"
    return ""


def audio_packages_refusal() -> str:
    """Return that packages for audio files are missing; an empty text if they are there."""
    missing = [name for name in ("soundfile", "soxr") if find_spec(name) is None]
    if missing:
        return f"audio needs {' and '.join(missing)}: pip install 'stonechat[audio]'"
    return ""


def checked_processor(folder: Path, modality: Modality, token_id: int) -> "HFProcessor | str":
    """Return a model's processor, which has prepared a small image or clip; or why it cannot."""
    if refusal := pillow_refusal() if modality == "image" else audio_packages_refusal():
        return refusal
    try:
        processor = HFProcessor(folder, modality, token_id)
        processor.prepare(_test_image() if modality == "image" else noise_clip(processor))
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:
        return f"its {modality} processor fails: {reason_of(error)}"
    return processor


def _test_image() -> Any:
    from PIL import Image

    return Image.new("RGB", TEST_SIZE)


def noise_clip(processor: "HFProcessor", seconds: float = TEST_SECONDS) -> Any:
    """Return noise, float32[n], for a processor of audio."""
    import numpy as np

    num_samples = int(seconds * processor.sampling_rate)
    return np.random.default_rng(0).standard_normal(num_samples, np.float32) / 10


def large_image(processor: "HFProcessor") -> MediaInput:
    """Return a white image of `LARGE_SIZE`, as it is prepared for a model."""
    from PIL import Image

    _, num_tokens, arrays = processor.prepare(Image.new("RGB", LARGE_SIZE, "white"))
    return MediaInput(b"", ((0, num_tokens),), as_tensors(arrays))


def as_tensors(arrays: "Mapping[str, np.ndarray[Any, Any]]") -> dict[str, MediaTensor]:
    """Return copies of arrays, by the same names, for `MediaInput`."""
    return {
        name: MediaTensor(array.dtype.name, array.shape, array.tobytes())
        for name, array in arrays.items()
    }


class HFProcessor:
    """A model's processor for one modality. Its parts for others are not loaded."""

    placeholder: str
    """The text that the chat template writes for an image or a clip."""

    def __init__(self, folder: Path, modality: Modality, token_id: int) -> None:
        """Load the processor of a folder. `token_id`: the token whose place embeddings take.

        Raises `UnsupportedModelError` with the reason if there is none that works here.
        """
        self._token_id = token_id
        self._modality = modality
        self._seconds_taken = LONG_SECONDS
        """Clips that are not longer are taken whole."""
        self._ends: dict[float, bool] = {}
        """Whether the processor drops what follows so many seconds, as far as that is known."""
        self._processor = load_processor(folder, modality, token_id)
        self._piece = piece_size(folder) if modality == "audio" else None
        self._piece_tokens = 0
        """How many tokens a piece is, once it is known."""
        names = (f"{modality}_placeholder_token", f"{modality}_token")
        tokens = (getattr(self._processor, name, None) for name in names)
        self.placeholder = next((token for token in tokens if token), "")
        if not self.placeholder:
            raise UnsupportedModelError(f"its processor has no placeholder for {modality}")

    @property
    def number_marks(self) -> tuple[str, str] | None:
        """What stands around the number of an image before its text; None: images have none."""
        if self._modality != "image" or not getattr(self._processor, "default_use_image_id", False):
            return None
        return self._processor.image_id_start_token, self._processor.image_id_end_token

    @property
    def sampling_rate(self) -> int:
        """Samples a second of the clips that `prepare` takes."""
        return int(self._processor._audio_processor.sampling_rate)

    def prepare(
        self, medium: Any, *, among_others: bool = False
    ) -> tuple[str, int, dict[str, "np.ndarray[Any, Any]"]]:
        """Return the text of a medium, how many placeholder tokens it has, and the tensors.

        `medium`: an image of Pillow, or the samples of a clip at `sampling_rate`, float32[n].
        `among_others` is as in `ImageOptions`.

        Raises what the processor raises, `UnsupportedModelError` if it gives no text, and
        `UnusableMediaError` for a clip that is too long, too short or too loud for it, and for an
        image that is too small.
        """
        prepared = self._prepare(medium, 2 if among_others else 1)
        if self._modality == "audio":
            self._check_audio(medium, prepared)
        return prepared

    def cut(
        self, num_tokens: int, arrays: "Mapping[str, np.ndarray[Any, Any]]"
    ) -> "list[tuple[int, Mapping[str, np.ndarray[Any, Any]]]]":
        """Cut what `prepare` returns of a clip: the tokens and the tensors of each piece in order.

        An image, a short clip and one whose model attends to all of it are one piece.
        """
        size = self._piece
        if size is None or not size.is_exceeded(arrays):
            return [(num_tokens, arrays)]
        if not self._piece_tokens:
            extractor = self._processor._audio_processor
            num_frames = size.length if size.axis else extractor.nb_max_frames
            seconds = num_frames * extractor.hop_length / self.sampling_rate
            _, self._piece_tokens, _ = self._prepare(noise_clip(self, seconds))
        most_left = self._piece_tokens * size.chunk // size.length
        starts = range(0, max(1, num_tokens - most_left), self._piece_tokens)
        ends = [*starts[1:], num_tokens]
        return [
            (end - start, size.piece(arrays, number, is_last=end == num_tokens))
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def _prepare(
        self, medium: Any, number: int = 1
    ) -> tuple[str, int, dict[str, "np.ndarray[Any, Any]"]]:
        """Return what `prepare` returns, of the first of so many equal media in a prompt."""
        import numpy as np

        if self._modality == "image":
            images = [medium] if number == 1 else [[medium] * number]
            arguments: dict[str, Any] = {"images": images, "return_tensors": "np"}
            if self.number_marks:
                arguments["use_image_id"] = False
        else:
            rate = {"sampling_rate": self.sampling_rate}
            arguments = {"audio": [medium], "return_tensors": "pt", "audio_kwargs": rate}
        outputs = self._processor(
            text=[self._template_text() * number], return_text_replacement_offsets=True, **arguments
        )
        offsets = outputs.pop("text_replacement_offsets", None)
        if not offsets or len(offsets[0]) != number:
            raise UnsupportedModelError("its processor puts no tokens into the prompt")
        text = offsets[0][0]["replacement"]
        num_tokens = np.asarray(outputs["input_ids"][0]).tolist().count(self._token_id)
        num_tokens //= number
        if not num_tokens and self.placeholder not in text:
            little = "short" if self._modality == "audio" else "small"
            raise UnusableMediaError("unfit", f"is too {little} for this model")
        if not num_tokens:
            raise UnsupportedModelError("the placeholders of its processor are not its model's")
        tensors = {name: _array(v) for name, v in outputs.items() if name not in TEXT_OUTPUTS}
        if number > 1:
            tensors = {name: tensor[:1] for name, tensor in tensors.items()}
        return text, num_tokens, tensors

    def _template_text(self) -> str:
        """Return the placeholder between the marks that some processors want around it."""
        marks = (getattr(self._processor, f"image_{end}_token", None) for end in ("start", "end"))
        start, end = (mark if self._modality == "image" and mark else "" for mark in marks)
        return f"{start}{self.placeholder}{end}"

    def check_seconds(self, seconds: float) -> None:
        """Raise `UnusableMediaError` for the length of a clip that `prepare` would refuse for it.

        Processors do not say how long a clip they take, but they may have the number.
        """
        for limit in sorted(self._possible_limits()):
            if seconds < limit + END_SECONDS:
                return
            if limit not in self._ends:
                samples = noise_clip(self, limit + END_SECONDS)
                self._ends[limit] = self._drops_end(samples, self._prepare(samples)[2])
            if self._ends[limit]:
                raise too_long(limit)

    def _possible_limits(self) -> set[float]:
        extractor = self._processor._audio_processor
        window = getattr(extractor, "chunk_length", None)
        most = getattr(self._processor, "max_audio_len", None)
        num_samples = inspect.signature(extractor.__call__).parameters.get("max_length")
        limits = {window, most // window * window if most and window else most}
        if num_samples is not None and num_samples.default:
            limits.add(num_samples.default / self.sampling_rate)
        return {limit for limit in limits if limit}

    def _check_audio(
        self, samples: Any, prepared: tuple[str, int, dict[str, "np.ndarray[Any, Any]"]]
    ) -> None:
        """Refuse a clip of which the processor drops the end, or that it turns into no numbers."""
        import numpy as np

        tensors = prepared[2]
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise UnusableMediaError("unfit", "becomes features that are no finite numbers")
        seconds = len(samples) / self.sampling_rate
        if seconds <= self._seconds_taken:
            return
        if self._drops_end(samples, tensors):
            raise UnusableMediaError("too_long", "is longer than this model takes")
        self._seconds_taken = seconds

    def _drops_end(self, samples: Any, tensors: "Mapping[str, np.ndarray[Any, Any]]") -> bool:
        """Whether a clip has the same tensors with another end."""
        import numpy as np

        other, noise = samples.copy(), noise_clip(self, END_SECONDS)
        # Quiet, so that it changes nothing before it: features depend on the loudest sound.
        other[-len(noise) :] += noise * max(0.1, np.abs(samples).max()) / 10
        _, _, others = self._prepare(other)
        return all(np.array_equal(others[name], tensors[name]) for name in tensors)


def _array(value: Any) -> "np.ndarray[Any, Any]":
    import numpy as np

    array = np.ascontiguousarray(value)
    if array.dtype == object:
        raise UnsupportedModelError("its processor gives tensors of several sizes for one file")
    return array
