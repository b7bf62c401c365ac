"""Where a long clip is cut. Towers with windows that do not see each other encode it piece by piece
into what they make of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PIECE_FRAMES = 3000
"""Of 10 ms: the most in a piece, unless a window has more."""
WINDOW_ROWS = frozenset({"voxtral", "glmasr", "audioflamingo3"})
"""Types whose processors make a row of each window. Music Flamingo is none of them: it counts the
windows of a clip."""


@dataclass(frozen=True, slots=True)
class PieceSize:
    """How much of a clip's tensors is a piece: rows of axis 0, or frames of axis -1."""

    axis: int
    length: int
    chunk: int = 0
    """Frames that go through the convolutions at a time. What is left behind the last piece is part
    of it if it is no longer: alone it would not be padded to the length of the other chunks."""

    def is_exceeded(self, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> bool:
        """Whether a clip has more than one piece."""
        return any(array.shape[self.axis] > self.length for array in arrays.values())

    def piece(
        self, arrays: "Mapping[str, np.ndarray[Any, Any]]", number: int, *, is_last: bool
    ) -> "dict[str, np.ndarray[Any, Any]]":
        """Return the tensors of a piece."""
        end = (number + 1) * self.length + (self.chunk if is_last else 0)
        part = slice(number * self.length, end)
        index = part if self.axis == 0 else (..., part)
        return {name: array[index] for name, array in arrays.items()}


def piece_size(folder: Path) -> PieceSize | None:
    """Return how the clips of a folder's model are cut; None if they are not."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return None
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type in WINDOW_ROWS:
        return PieceSize(0, 1)
    audio: Any = getattr(getattr(config, "thinker_config", config), "audio_config", None)
    if not hasattr(audio, "n_window"):
        return None
    chunk = 2 * audio.n_window
    window = getattr(audio, "n_window_infer", None) or chunk
    return PieceSize(-1, max(1, (PIECE_FRAMES - chunk) // window) * window, chunk)
