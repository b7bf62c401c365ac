"""Float linears whose rows have the same bits in any batch (`--deterministic`).

A matrix product may sum in another order when it has another number of rows. So the rows are
taken in tiles of a fixed size, the last one filled up with zeros. Whether a row's bits depend on
its place in a tile is tried on each layer's own weights, and the tile made smaller until not.

Elementwise functions may compute the last few numbers of a tensor with other instructions than
the rest, so a step's tokens are also filled up to a multiple of `ROWS` (see `TransformersModel`).
"""

import torch
import torch.nn.functional as F
from torch import nn

from stonechat_models.errors import UnsupportedModelError

ROWS = 32
TILE_SIZES = (ROWS, 16, 8, 4, 1)


class TiledLinear(nn.Module):
    """`nn.Linear` over tiles of `tile` rows; shares its weight and bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.tile = next(size for size in TILE_SIZES if self._is_same_everywhere(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] gives [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        num_rows = rows.shape[0]
        padding = -num_rows % self.tile
        tiles = torch.split(F.pad(rows, (0, 0, 0, padding)), self.tile)
        # A clone is aligned as the trial's rows are; kernels may differ for other addresses.
        output = torch.cat([F.linear(tile.clone(), self.weight, self.bias) for tile in tiles])
        return output[:num_rows].view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def _is_same_everywhere(self, tile: int) -> bool:
        """Whether one row gets the same bits at every place of a tile, whatever the others are."""
        if tile == 1:
            return True
        generator = torch.Generator().manual_seed(tile)
        others = torch.randn(tile, self.in_features, generator=generator).to(self.weight)
        found = []
        for place in range(tile):
            rows = others.clone()
            rows[place] = others[0]
            rows[:place] *= place
            found.append(F.linear(rows, self.weight, self.bias)[place])
        return all(torch.equal(row, found[0]) for row in found)


def make_deterministic(module: nn.Module) -> None:
    """Replace every linear of `module` in place.

    Raises `UnsupportedModelError` when weights are multiplied elsewhere than in linears (the
    experts of a mixture, say), where other rows could still change a row's bits.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, TiledLinear(child))
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if parameter.dim() > 1 and not isinstance(owner, TiledLinear | nn.Embedding):
            raise UnsupportedModelError(
                f"cannot run deterministically: {name} is multiplied by {type(owner).__name__}"
            )
