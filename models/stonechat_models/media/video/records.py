"""What is known of a video, and what rules say of its frames."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What is known of a video before its frames are decoded."""

    num_frames: int
    rate: float
    """Frames a second, on average."""
    size: Size
    """Turned upright."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.num_frames / self.rate


@dataclass(frozen=True, slots=True)
class Video:
    """The frames of a video that are taken: RGB, upright, of one size."""

    frames: "list[Image]"
    indices: Sequence[int]
    """Which of the video's frames they are, ascending."""
    facts: VideoFacts


Choose = Callable[[VideoFacts], tuple[Sequence[int], Size]]
"""Returns which frames are taken, ascending, and the size that they are scaled to."""


class VideoRules(Protocol):
    """Which frames of a video a model sees, how large, and in what form.

    The processors of transformers need torchvision for it.
    """

    def indices(self, facts: VideoFacts, max_frames: int) -> list[int]:
        """Return which frames are taken, ascending."""
        ...

    def frame_size(self, size: Size, num_frames: int) -> Size:
        """Return what frames are scaled to.

        Raises `UnusableMediaError` for a size that the model does not take.
        """
        ...

    def num_tokens(self, size: Size, num_frames: int) -> int:
        """Return how many placeholder tokens frames of a size become."""
        ...

    def tensors(self, video: Video) -> "Mapping[str, np.ndarray[Any, Any]]":
        """Return the arguments of the model's `get_image_features`. The first axis has the pieces
        of the video."""
        ...

    def text_inputs(self, video: Video) -> Mapping[str, Any]:
        """Return what the processor of transformers reads to write the text of the video."""
        ...
