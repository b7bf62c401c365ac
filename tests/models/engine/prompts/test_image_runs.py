"""Runs of placeholders that are computed in one step."""

import numpy as np
import pytest

from stonechat_models.engine.prompts.image_runs import (
    chunk_end,
    image_runs,
    longest_run,
    visible_ends,
)
from stonechat_models.types import MediaInput


def image(*places):
    return MediaInput(b"", places, {})


def test_images_that_touch_are_one_run():
    images = [image((3, 4), (9, 2)), image((11, 5)), image((20, 1), (30, 0))]
    runs = image_runs(images)
    assert runs == [(3, 7), (9, 16), (20, 21)]
    assert longest_run(runs) == 7
    assert image_runs([]) == []
    assert longest_run([]) == 0


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 3, 3),  # up to a run
        (0, 5, 3),  # not into it
        (0, 7, 7),
        (0, 8, 8),
        (0, 15, 9),
        (3, 6, 3),  # the next run does not fit
        (5, 7, 7),  # the rest of a run whose first part is cached
        (5, 6, 5),
        (7, 12, 9),
        (16, 40, 40),
    ],
)
def test_no_step_ends_inside_a_run(start, end, expected):
    assert chunk_end([(3, 7), (9, 16)], start, end) == expected


def test_tokens_of_a_run_see_its_end():
    runs = [(3, 7), (9, 12)]
    np.testing.assert_array_equal(
        visible_ends(runs, 0, 13), [1, 2, 3, 7, 7, 7, 7, 8, 9, 12, 12, 12, 13]
    )
    np.testing.assert_array_equal(visible_ends(runs, 5, 9), [7, 7, 8, 9])
    np.testing.assert_array_equal(visible_ends(runs, 10, 12), [12, 12])
    np.testing.assert_array_equal(visible_ends([], 4, 6), [5, 6])
    assert visible_ends(runs, 0, 1).dtype == np.int32
    with pytest.raises(AssertionError, match="inside a run"):
        visible_ends(runs, 0, 5)
