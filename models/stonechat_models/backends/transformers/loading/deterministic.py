"""Float linear layers whose rows have the same bits in any batch (`--deterministic`).

A matrix product may sum in another order if it has another number of rows. So the rows are
multiplied in tiles of a fixed size, and the last tile is padded with zeros. A row's bits may still
depend on its place in a tile. Each layer checks that with its own weights, and uses the largest
tile in which they do not.

Elementwise functions may compute the last few numbers of a tensor with other instructions than
the rest. So a step's tokens are also padded to a multiple of `ROWS` (see `TransformersModel`).
"""

import torch
import torch.nn.functional as F
from torch import nn

from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.errors import UnsupportedModelError

ROWS = 32
TILE_SIZES = (ROWS, 16, 8, 4, 1)


class TiledLinear(nn.Module):
    """`nn.Linear` in tiles of `tile` rows. Shares the weight and bias of the original layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.tile = next(size for size in TILE_SIZES if self._is_same_everywhere(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        num_rows = rows.shape[0]
        padding = -num_rows % self.tile
        tiles = torch.split(F.pad(rows, (0, 0, 0, padding)), self.tile)
        # A clone is aligned like the rows of the check; kernels may differ for other addresses.
        output = torch.cat([F.linear(tile.clone(), self.weight, self.bias) for tile in tiles])
        return output[:num_rows].view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def _is_same_everywhere(self, tile: int) -> bool:
        """Whether a row has the same bits at every place of a tile, whatever the other rows are."""
        if tile == 1:
            return True
        generator = torch.Generator().manual_seed(tile)
        random_rows = torch.randn(tile, self.in_features, generator=generator).to(self.weight)
        outputs = []
        for place in range(tile):
            rows = random_rows.clone()
            rows[place] = random_rows[0]
            rows[:place] *= place
            outputs.append(F.linear(rows, self.weight, self.bias)[place])
        return all(torch.equal(row, outputs[0]) for row in outputs)


def make_deterministic(module: nn.Module) -> None:
    """Replace every `nn.Linear` of `module` in place, but those of a vision tower: that encodes
    each image alone.

    Raises `UnsupportedModelError` if weights are multiplied outside linear layers, for example in
    the experts of a mixture: other rows could still change a row's bits there.
    """
    vision = tower_parts(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child not in vision:
                setattr(parent, name, TiledLinear(child))
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if owner in vision:
            continue
        if parameter.dim() > 1 and not isinstance(owner, TiledLinear | nn.Embedding):
            raise UnsupportedModelError(
                f"cannot run deterministically: {name} is multiplied by {type(owner).__name__}"
            )
