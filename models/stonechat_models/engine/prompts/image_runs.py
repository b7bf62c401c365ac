"""The runs of placeholders in a prompt whose tokens attend to each other in both directions.

The keys and values of such a token depend on all images of its run, so a run is computed in one
step, and its blocks are cached under the content of all of them.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from stonechat_models.types import MediaInput

Runs = Sequence[tuple[int, int]]
"""Start and end of each run, in order. There is at least one token between two runs."""


def image_runs(images: Iterable[MediaInput]) -> list[tuple[int, int]]:
    """Return the runs of a prompt with these images. Images that touch are one run."""
    runs: list[tuple[int, int]] = []
    places = sorted(place for image in images for place in image.places if place[1])
    for start, length in places:
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + length)
        else:
            runs.append((start, start + length))
    return runs


def longest_run(runs: Runs) -> int:
    """Return the number of tokens in the longest run; 0 without runs."""
    return max((end - start for start, end in runs), default=0)


def chunk_end(runs: Runs, start: int, end: int) -> int:
    """Return where a step ends that may compute the tokens from `start` up to `end`.

    It ends before a run that does not fit. The result is `start` if the run that is next does not.
    """
    for run_start, run_end in runs:
        if run_start < end < run_end:
            return max(run_start, start)
    return end


def visible_ends(runs: Runs, start: int, end: int) -> npt.NDArray[np.int32]:
    """Return int32[end - start]: up to which position each token from `start` on sees.

    See `StepMedia.visible_ends`. No run reaches over `end`.
    """
    ends = np.arange(start + 1, end + 1, dtype=np.int32)
    for run_start, run_end in runs:
        first = max(run_start, start)
        if first < min(run_end, end):
            assert run_end <= end, "a step ends inside a run"
            ends[first - start : run_end - start] = run_end
    return ends
