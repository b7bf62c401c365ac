"""The matrix products of a fused model that a kernel of our own can compute."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.attention import (
    FusedAttention,
    PositionEmbeddings,
)
from stonechat_models.backends.transformers.fused.hybrid_layer import FusedHybridLayer
from stonechat_models.backends.transformers.fused.layer import FusedDecoderLayer
from stonechat_models.backends.transformers.fused.linears import adds_in_product, is_plain
from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP
from stonechat_models.backends.transformers.fused.products import (
    add_product,
    gated_product,
    normed_product,
)
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    FewRowsTile,
    few_rows_product,
    few_rows_qkv,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    ROW_COUNTS,
    SomeRows,
    some_rows_product,
)


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of a model, with what surrounds it.

    `norm`: that of its input. `adds`: its result is added to the residual. `mlp`: the MLP whose
    gate it computes, if it does. `attention`: the attention whose heads it computes and rotates,
    if it may; `slots` are then the first numbers.
    """

    kind: str
    linear: nn.Module
    norm: FusedRMSNorm | None = None
    adds: bool = False
    mlp: MergedMLP | None = None
    attention: FusedAttention | None = None
    slots: torch.Tensor | None = None

    def run(self, x: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        """Map an input [M, k] to a result.

        `scratch` [M, n] is the residual if it `adds`, and has the place of keys and values.
        """
        if self.attention is not None:
            heads = self._heads(self.attention, x, scratch)
            return self.attention.project(x, self.norm, *heads)[0]
        if self.adds:
            return add_product(scratch, self.linear, x)
        if self.mlp is not None:
            return gated_product(x, self.norm, self.linear, uses_gelu=self.mlp.uses_gelu)
        return normed_product(x, self.norm, self.linear)

    def compile(self, x: torch.Tensor, scratch: torch.Tensor, tile: FewRowsTile | SomeRows) -> None:
        """Compile what `run` launches if it has this tile."""
        residual = scratch if self.adds else None
        is_gated = self.mlp is not None
        uses_gelu = self.mlp is not None and self.mlp.uses_gelu
        if isinstance(tile, SomeRows):
            some_rows_product(
                x,
                self.linear,
                tile,
                residual=residual,
                is_gated=is_gated,
                uses_gelu=uses_gelu,
                compiles_only=True,
            )
            return
        if self.attention is not None:
            heads = self._heads(self.attention, x, scratch)
            few_rows_qkv(x, self.linear, tile, *heads, norm=self.norm, compiles_only=True)
            return
        few_rows_product(
            x,
            self.linear,
            tile,
            norm=self.norm,
            residual=residual,
            is_gated=is_gated,
            uses_gelu=uses_gelu,
            compiles_only=True,
        )

    def _heads(
        self, attention: FusedAttention, x: torch.Tensor, scratch: torch.Tensor
    ) -> tuple[PositionEmbeddings, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cosines and sines (any numbers), slots, and where keys and values go."""
        assert self.slots is not None
        num_rows, size = len(x), attention.head_dim
        num_keys = num_rows * attention.num_kv_heads * size
        angles = scratch.view(-1)[: num_rows * size].view(1, num_rows, size)
        places = scratch.view(-1)[-2 * num_keys :].view(2, num_rows, -1, size)
        return (angles, angles), self.slots[:num_rows], places[0], places[1]


def product_groups(module: nn.Module) -> list[list[Product]]:
    """The products that kernels of our own can compute: those of one kind and shape together."""
    groups: dict[object, list[Product]] = defaultdict(list)
    for product in _products(module):
        weight, bias = product.linear.weight, product.linear.bias
        assert isinstance(weight, torch.Tensor)
        groups[product.kind, weight.shape, weight.dtype, bias is None].append(product)
    return list(groups.values())


def _products(module: nn.Module) -> Iterator[Product]:
    in_layers = set()
    slots = torch.arange(max(ROW_COUNTS), device=next(module.parameters()).device)
    for layer in module.modules():
        if isinstance(layer, FusedHybridLayer):
            mlp = layer.get_submodule(layer.names.mlp)
            assert isinstance(mlp, MergedMLP)
            in_layers.add(mlp)
            yield from _mlp_products(mlp, None, adds=True)
        if not isinstance(layer, FusedDecoderLayer):
            continue
        attention, mlp = layer.self_attn, layer.mlp
        if is_plain(attention.qkv_proj):
            norm, linear = layer.input_layernorm, attention.qkv_proj
            if attention.turns_in_product:
                yield Product("turned qkv", linear, norm, attention=attention, slots=slots)
            else:
                yield Product("qkv", linear, norm)
        if adds_in_product(attention.o_proj):
            yield Product("output", attention.o_proj, adds=True)
            if isinstance(mlp, MergedMLP):
                in_layers.add(mlp)
                yield from _mlp_products(mlp, layer.post_attention_layernorm, adds=True)
    for mlp in module.modules():
        if isinstance(mlp, MergedMLP) and mlp not in in_layers:
            yield from _mlp_products(mlp, None, adds=False)


def _mlp_products(mlp: MergedMLP, norm: FusedRMSNorm | None, *, adds: bool) -> Iterator[Product]:
    """`adds`: the layer lets the last product add to the residual."""
    if is_plain(mlp.gate_up_proj):
        kind = "gate_up" if norm is None else "normed gate_up"
        yield Product(kind, mlp.gate_up_proj, norm, mlp=mlp)
    if adds_in_product(mlp.down_proj) and adds:
        yield Product("down", mlp.down_proj, adds=True)
