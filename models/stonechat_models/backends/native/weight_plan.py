"""Plans the loading of a decoder: which tensors it has, and the packed format of each."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import Kind, Library
from stonechat_models.backends.native.families import Family
from stonechat_models.backends.native.packing import MatrixSpec, packed_bytes
from stonechat_models.backends.native.spec import ModelSpec
from stonechat_models.backends.native.tensor_source import Rows, Stack, Store, own_kind
from stonechat_models.config import Quantize

EXPERT_PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
MIXTRAL_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}
Vector = npt.NDArray[np.float32]


@dataclass(slots=True)
class LayerPlan:
    """One layer's matrices and vectors, by their names in `LayerStruct`."""

    matrices: dict[str, MatrixSpec] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)


@dataclass(slots=True)
class WeightPlan:
    """All weights of a model. `head` is None if the embedding also serves as the head."""

    layers: list[LayerPlan]
    embedding: MatrixSpec
    head: MatrixSpec | None
    final_norm: Vector

    @property
    def matrices(self) -> list[MatrixSpec]:
        """All matrices in order: those of the layers, the embedding, the head if there is one."""
        specs = [spec for layer in self.layers for spec in layer.matrices.values()]
        return [*specs, self.embedding, *([self.head] if self.head else [])]

    @property
    def num_parameters(self) -> int:
        vectors = [v for layer in self.layers for v in layer.vectors.values()]
        biases = [spec.bias for spec in self.matrices if spec.bias is not None]
        matrices = sum(spec.rows.n * spec.rows.k for spec in self.matrices)
        return matrices + sum(v.size for v in (*vectors, *biases, self.final_norm))

    def num_bytes(self, library: Library, expert_share: float) -> tuple[int, int]:
        """Bytes of all packed matrices, and of those that a decode step of one sequence reads.

        It reads `expert_share` of the experts' weights.
        """
        total, read = 0, 0.0
        for spec in self.matrices:
            size = packed_bytes(library, spec)
            total += size
            if spec is not self.embedding or self.head is None:  # else it reads one row
                read += size * expert_share if ".experts." in spec.rows.name else size
        return total, round(read)


def kept_kind(type_name: str, quantize: Quantize, *, is_end: bool) -> Kind:
    """The packed format of a matrix of a stored type: as stored, or as `quantize` requests.

    `is_end` is True for the embedding and the head. int4 quantises them to 8 bits only; a Q4_0 end
    stays as stored.
    """
    stored_kind = own_kind(type_name)
    if quantize == "int8" or (quantize == "int4" and is_end):
        return stored_kind if stored_kind == Kind.SYMMETRIC4 and is_end else Kind.INT8
    if quantize == "int4":
        return stored_kind if stored_kind == Kind.SYMMETRIC4 else Kind.AFFINE4
    return stored_kind


class _Planner:
    def __init__(self, store: Store, quantize: Quantize) -> None:
        self.store = store
        self.quantize = quantize

    def matrix(
        self, rows: Rows | Stack, bias: Vector | None = None, *, is_end: bool = False
    ) -> MatrixSpec:
        return MatrixSpec(rows, kept_kind(rows.type_name, self.quantize, is_end=is_end), bias)

    def split(self, name: str, parts: dict[str, int]) -> dict[str, MatrixSpec]:
        """Split a merged projection into consecutive parts; `parts` holds their numbers of rows."""
        rows, bias = self.store.rows(name + ".weight"), self.bias(name)
        matrices, start = {}, 0
        for part, size in parts.items():
            piece = None if bias is None else bias[start : start + size]
            matrices[part] = self.matrix(rows.take(start, start + size), piece)
            start += size
        return matrices

    def projection(self, name: str) -> MatrixSpec:
        return self.matrix(self.store.rows(name + ".weight"), self.bias(name))

    def bias(self, name: str) -> Vector | None:
        return self.store.vector(name + ".bias") if self.store.has(name + ".bias") else None

    def layer(self, spec: ModelSpec, i: int) -> LayerPlan:
        base = f"model.layers.{i}."
        attention = base + "self_attn."
        layer = LayerPlan()
        if self.store.has(attention + "qkv_proj.weight"):
            sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
            layer.matrices |= self.split(attention + "qkv_proj", sizes)
        else:
            layer.matrices |= {part: self.projection(f"{attention}{part}_proj") for part in "qkv"}
        layer.matrices["o"] = self.projection(attention + "o_proj")
        if spec.has_experts(i):
            layer.matrices |= self.experts(spec, base)
        else:
            layer.matrices |= self.feed_forward(spec, base + "mlp.")
        for part, name in norm_names(spec.family).items():
            layer.vectors[part] = self.norm(spec, f"{base}{name}.weight")
        for part in ("q_norm", "k_norm"):
            if self.store.has(f"{attention}{part}.weight"):
                layer.vectors[part] = self.norm(spec, f"{attention}{part}.weight")
        return layer

    def feed_forward(self, spec: ModelSpec, base: str) -> dict[str, MatrixSpec]:
        if self.store.has(base + "gate_up_proj.weight"):
            size = spec.intermediate_size
            matrices = self.split(base + "gate_up_proj", {"gate": size, "up": size})
        else:
            matrices = {part: self.projection(f"{base}{part}_proj") for part in ("gate", "up")}
        return matrices | {"down": self.projection(base + "down_proj")}

    def experts(self, spec: ModelSpec, base: str) -> dict[str, MatrixSpec]:
        """The router, and for each projection the rows of all experts, one behind the other."""
        experts = spec.experts
        assert experts is not None
        is_mixtral = self.store.has(base + "block_sparse_moe.gate.weight")
        base += "block_sparse_moe." if is_mixtral else "mlp."
        router = self.store.rows(base + "gate.weight")
        kind = own_kind(router.type_name)
        matrices = {"router": MatrixSpec(router, Kind.FLOAT if kind.is_quantised else kind)}
        if self.store.has(base + "experts.gate_up_proj"):
            gate_up = self.store.rows(base + "experts.gate_up_proj")
            order = gate_up.index.reshape(experts.count, 2, -1)
            halves = [replace(gate_up, index=order[:, i].reshape(-1)) for i in range(2)]
            down = self.store.rows(base + "experts.down_proj")
            rows: dict[str, Rows | Stack] = {"gate": halves[0], "up": halves[1], "down": down}
        elif self.store.has(base + "experts.gate_proj.weight"):
            parts = {part: f"{base}experts.{part}_proj.weight" for part in EXPERT_PARTS}
            rows = {part: self.store.rows(name) for part, name in parts.items()}
        else:
            rows = {
                part: Stack(
                    tuple(
                        self.store.rows(f"{base}experts.{i}.{name}.weight")
                        for i in range(experts.count)
                    )
                )
                for part, name in (EXPERT_PARTS if not is_mixtral else MIXTRAL_PARTS).items()
            }
        return matrices | {part: self.matrix(part_rows) for part, part_rows in rows.items()}

    def norm(self, spec: ModelSpec, name: str) -> Vector:
        """The factors of a norm: its weights, with the family's offset already added."""
        offset = spec.family.norm_offset - self.store.norm_offset
        return np.asarray(self.store.vector(name) + np.float32(offset), dtype=np.float32)


def norm_names(family: Family) -> dict[str, str]:
    """Map the names in `LayerStruct` of the norms of hidden rows to those in transformers."""
    if not family.output_norms:
        return {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    names = {
        "attention_out_norm": "post_attention_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    }
    if family.input_norms:
        names |= {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
    return names


def plan_weights(spec: ModelSpec, store: Store, quantize: Quantize) -> WeightPlan:
    """Plan the loading of all weights.

    Raises `ModelLoadError` for a missing tensor and `UnsupportedModelError` for its type.
    """
    planner = _Planner(store, quantize)
    embedding = planner.matrix(store.rows("model.embed_tokens.weight"), is_end=True)
    head = None if spec.tied else planner.matrix(store.rows("lm_head.weight"), is_end=True)
    return WeightPlan(
        layers=[planner.layer(spec, i) for i in range(spec.num_layers)],
        embedding=embedding,
        head=head,
        final_norm=planner.norm(spec, "model.norm.weight"),
    )
