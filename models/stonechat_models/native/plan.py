"""Which tensors a decoder has, and how each is kept: the plan that loading carries out."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stonechat_models.config import Quantize
from stonechat_models.native.library import Kind
from stonechat_models.native.packing import Plan
from stonechat_models.native.spec import ModelSpec
from stonechat_models.native.weights import Rows, Store, own_kind

Vector = npt.NDArray[np.float32]


@dataclass(slots=True)
class LayerPlan:
    """One layer's matrices by their name in `LayerStruct`, and its vectors."""

    matrices: dict[str, Plan] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)


@dataclass(slots=True)
class ModelPlan:
    """All of a model's weights. `head` is None when the embedding serves as head too."""

    layers: list[LayerPlan]
    embedding: Plan
    head: Plan | None
    final_norm: Vector

    @property
    def plans(self) -> list[Plan]:
        """All matrices: those of the layers in order, the embedding, the head."""
        found = [plan for layer in self.layers for plan in layer.matrices.values()]
        return [*found, self.embedding, *([self.head] if self.head else [])]

    @property
    def num_parameters(self) -> int:
        vectors = [v for layer in self.layers for v in layer.vectors.values()]
        biases = [plan.bias for plan in self.plans if plan.bias is not None]
        matrices = sum(plan.rows.n * plan.rows.k for plan in self.plans)
        return matrices + sum(v.size for v in (*vectors, *biases, self.final_norm))


def kept_kind(type_name: str, quantize: Quantize, *, is_end: bool) -> Kind:
    """How a matrix of a stored type is kept: as it is, or as asked.

    `is_end`: the embedding or the head, which are never put in 4 bits by request.
    """
    own = own_kind(type_name)
    if quantize == "int8" or (quantize == "int4" and is_end):
        return own if own == Kind.SYMMETRIC4 and is_end else Kind.INT8
    if quantize == "int4":
        return own if own == Kind.SYMMETRIC4 else Kind.AFFINE4
    return own


class _Planner:
    def __init__(self, store: Store, quantize: Quantize) -> None:
        self.store = store
        self.quantize = quantize

    def plan(self, rows: Rows, bias: Vector | None = None, *, is_end: bool = False) -> Plan:
        return Plan(rows, kept_kind(rows.type_name, self.quantize, is_end=is_end), bias)

    def split(self, name: str, parts: dict[str, int]) -> dict[str, Plan]:
        """A merged projection, cut into consecutive parts of the given numbers of rows."""
        rows, bias = self.store.rows(name + ".weight"), self.bias(name)
        found, start = {}, 0
        for part, size in parts.items():
            piece = None if bias is None else bias[start : start + size]
            found[part] = self.plan(rows.take(start, start + size), piece)
            start += size
        return found

    def one(self, name: str) -> Plan:
        return self.plan(self.store.rows(name + ".weight"), self.bias(name))

    def bias(self, name: str) -> Vector | None:
        return self.store.vector(name + ".bias") if self.store.has(name + ".bias") else None

    def layer(self, spec: ModelSpec, i: int) -> LayerPlan:
        base = f"model.layers.{i}."
        attention, mlp = base + "self_attn.", base + "mlp."
        plan = LayerPlan()
        if self.store.has(attention + "qkv_proj.weight"):
            sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
            plan.matrices |= self.split(attention + "qkv_proj", sizes)
        else:
            plan.matrices |= {part: self.one(f"{attention}{part}_proj") for part in "qkv"}
        plan.matrices["o"] = self.one(attention + "o_proj")
        if self.store.has(mlp + "gate_up_proj.weight"):
            size = spec.intermediate_size
            plan.matrices |= self.split(mlp + "gate_up_proj", {"gate": size, "up": size})
        else:
            plan.matrices |= {part: self.one(f"{mlp}{part}_proj") for part in ("gate", "up")}
        plan.matrices["down"] = self.one(mlp + "down_proj")
        plan.vectors["attention_norm"] = self.store.vector(base + "input_layernorm.weight")
        plan.vectors["mlp_norm"] = self.store.vector(base + "post_attention_layernorm.weight")
        for part in ("q_norm", "k_norm"):
            if self.store.has(f"{attention}{part}.weight"):
                plan.vectors[part] = self.store.vector(f"{attention}{part}.weight")
        return plan


def plan_model(spec: ModelSpec, store: Store, quantize: Quantize) -> ModelPlan:
    """Raises `ModelLoadError` for a missing tensor, `UnsupportedModelError` for its type."""
    planner = _Planner(store, quantize)
    embedding = planner.plan(store.rows("model.embed_tokens.weight"), is_end=True)
    head = None if spec.tied else planner.plan(store.rows("lm_head.weight"), is_end=True)
    return ModelPlan(
        layers=[planner.layer(spec, i) for i in range(spec.num_layers)],
        embedding=embedding,
        head=head,
        final_norm=store.vector("model.norm.weight"),
    )
