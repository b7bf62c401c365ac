"""The image processor of LFM2-VL for Pillow. That of transformers needs torchvision.

A large image becomes tiles of one size, row by row, and a thumbnail behind them. Any other image is
scaled to a number of tokens between two limits. Each is stored as its patches, with zeros behind
them up to the most that there can be.
"""

import math
from typing import Any, ClassVar

import numpy as np
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs

from stonechat_models.media.records import UnusableMediaError
from stonechat_models.media.tiles import Pixels, TileProcessor, cut


class Settings(ImagesKwargs, total=False):  # type: ignore[misc, call-arg]
    """What preprocessor_config.json may say beside the settings of all image processors."""

    downsample_factor: int
    do_image_splitting: bool
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    min_image_tokens: int
    max_image_tokens: int
    encoder_patch_size: int
    tile_size: int
    max_pixels_tolerance: float
    return_row_col_info: bool


class Lfm2VlImageProcessor(TileProcessor):
    """Its defaults are those of transformers' class of this name."""

    valid_kwargs = Settings
    model_input_names: ClassVar = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    downsample_factor = 2
    do_image_splitting = True
    min_tiles = 2
    max_tiles = 10
    use_thumbnail = True
    min_image_tokens = 64
    max_image_tokens = 256
    encoder_patch_size = 16
    tile_size = 512
    max_pixels_tolerance = 2.0
    return_row_col_info = False
    size: ClassVar = {"height": 512, "width": 512}

    def _preprocess(
        self,
        images: list[Pixels],
        resample: Any,
        rescale_factor: float,
        image_mean: list[float],
        image_std: list[float],
        return_tensors: Any,
        **kwargs: Any,
    ) -> Any:
        """Return the parts of all images [P, n, values of a patch] and what describes them."""
        patches, sizes, grids = list[Pixels](), list[list[int]](), list[tuple[int, int]]()
        for image in images:
            height, width = image.shape[-2:]
            size = self._scaled(height, width)
            rows, columns = self._grid(height, width)
            parts = self._tiles(image, rows, columns, resample)
            if not parts or self.use_thumbnail:
                parts.append(self.resize(image, SizeDict(*size), resample))
            patches += [
                self._patches(
                    self.normalize(self.rescale(part, rescale_factor), image_mean, image_std)
                )
                for part in parts
            ]
            sizes.append([*size])
            grids.append((rows, columns))
        rows_of_patches = [part.reshape(-1, part.shape[-1]) for part in patches]
        padded = [self._padded(part) for part in rows_of_patches]
        data: dict[str, Any] = {
            "pixel_values": np.stack(padded),
            "pixel_attention_mask": np.stack(
                [np.arange(len(padded[0])) < len(part) for part in rows_of_patches]
            ).astype(np.int32),
            "spatial_shapes": np.array([part.shape[:2] for part in patches]),
        }
        if kwargs.get("return_row_col_info"):
            data |= {"image_rows": [r for r, _ in grids], "image_cols": [c for _, c in grids]}
            data["image_sizes"] = sizes
        return BatchFeature(data=data, tensor_type=return_tensors)

    @property
    def _unit(self) -> int:
        """How many pixels of each side make a token."""
        return self.encoder_patch_size * self.downsample_factor

    @property
    def _most_patches(self) -> int:
        """The most patches of a tile, of a thumbnail, or of an image without tiles."""
        in_tile = (self.tile_size // self.encoder_patch_size) ** 2 * self.do_image_splitting
        return max(self.max_image_tokens * self.downsample_factor**2, in_tile)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and the width of an image with a number of tokens in the limits."""
        unit = self._unit
        sides = [max(unit, round(side / unit) * unit) for side in (height, width)]
        least, most = self.min_image_tokens * unit**2, self.max_image_tokens * unit**2
        if math.prod(sides) > most:
            scale = math.sqrt(height * width / most)
            sides = [max(unit, math.floor(s / scale / unit) * unit) for s in (height, width)]
        elif math.prod(sides) < least:
            scale = math.sqrt(least / (height * width))
            sides = [math.ceil(s * scale / unit) * unit for s in (height, width)]
        return sides[0], sides[1]

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return how many rows and columns of tiles an image has; one of each: no tiles.

        Their ratio is the nearest to that of the image. Of several such grids, the largest one is
        taken of whose pixels the image has more than half.
        """
        unit, best, nearest = self._unit, (1, 1), math.inf
        sides = [max(self.encoder_patch_size, round(s / unit) * unit) for s in (height, width)]
        most = self.max_image_tokens * unit**2 * self.max_pixels_tolerance
        if not self.do_image_splitting or self.max_tiles == 1 or math.prod(sides) <= most:
            return best
        counts = range(1, self.max_tiles + 1)
        grids = [(r, c) for c in counts for r in counts if r * c in counts[self.min_tiles - 1 :]]
        for rows, columns in sorted(grids, key=math.prod):
            difference = abs(width / height - columns / rows)
            is_filled = height * width > self.tile_size**2 * rows * columns / 2
            if difference < nearest or (difference == nearest and is_filled):
                best, nearest = (rows, columns), difference
        return best

    def _tiles(self, image: Pixels, rows: int, columns: int, resample: Any) -> list[Pixels]:
        if rows == columns == 1:
            return []
        size = self.tile_size
        scaled = self.resize(image, SizeDict(rows * size, columns * size), resample)
        return [*cut(scaled, rows, columns, size)]

    def _patches(self, image: Pixels) -> Pixels:
        """Return the patches of an image [3, H, W] as [rows, columns, values of a patch]."""
        size, (height, width) = self.encoder_patch_size, image.shape[1:]
        grid = image.reshape(-1, height // size, size, width // size, size)
        return grid.transpose(1, 3, 2, 4, 0).reshape(height // size, width // size, -1)

    def _padded(self, patches: Pixels) -> Pixels:
        missing = self._most_patches - len(patches)
        if missing < 0:
            raise UnusableMediaError("unfit", "is too long and narrow for this model")
        return np.pad(patches, [(0, missing), (0, 0)])
