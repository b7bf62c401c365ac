"""Which weights share a scale, by the shapes of both."""

import pytest

from stonechat_models.checkpoint.packed.layouts import MisfitError, scale_grid


@pytest.mark.parametrize(
    ("shape", "scale", "grid"),
    [
        ((256, 384), (), ((1, 1, 1), 256, 384)),
        ((256, 384), (256,), ((1, 256, 1), 1, 384)),
        ((256, 384), (256, 1), ((1, 256, 1), 1, 384)),
        ((256, 384), (2, 3), ((1, 2, 3), 128, 128)),
        ((256, 384), (2, 1, 3, 1), ((1, 2, 3), 128, 128)),
        ((2, 256, 384), (2, 2, 1, 3, 1), ((2, 2, 3), 128, 128)),
        ((2, 256, 384), (2,), ((2, 1, 1), 256, 384)),
        ((2, 256, 384), (2, 256), ((2, 256, 1), 1, 384)),
    ],
)
def test_scales_belong_to(
    shape: tuple[int, ...], scale: tuple[int, ...], grid: tuple[tuple[int, int, int], int, int]
) -> None:
    assert scale_grid(shape, scale, (128, 128)) == grid


def test_four_dimensions_with_as_many_scales_as_rows_are_blocks() -> None:
    """The scales of this matrix are 8 blocks, and it has 8 rows."""
    assert scale_grid((8, 1024), (2, 1, 4, 1), (4, 256)) == ((1, 2, 4), 4, 256)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((8, 1024), (2, 2, 2, 1)), ((8, 1024), (2, 4, 1)), ((8,), (8,)), ((8,), ()), ((), ())],
)
def test_other_shapes_do_not_fit(shape: tuple[int, ...], scale: tuple[int, ...]) -> None:
    with pytest.raises(MisfitError):
        scale_grid(shape, scale, (0, 0))
