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
from stonechat_models.errors import ModelLoadError

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
    def __init__(self, spec: ModelSpec, store: Store, quantize: Quantize) -> None:
        self.spec = spec
        self.store = store
        self.quantize = quantize

    def matrix(
        self, rows: Rows | Stack, bias: Vector | None = None, *, is_end: bool = False
    ) -> MatrixSpec:
        return MatrixSpec(rows, kept_kind(rows.type_name, self.quantize, is_end=is_end), bias)

    def end(self, name: str) -> MatrixSpec:
        rows = self.store.rows(name, self.spec.vocab_size, self.spec.hidden_size)
        return self.matrix(rows, is_end=True)

    def merged(self, name: str, parts: dict[str, int], k: int) -> dict[str, MatrixSpec]:
        """Split a merged projection into consecutive parts; `parts` holds their numbers of rows."""
        rows = self.store.rows(f"{name}.weight", sum(parts.values()), k)
        matrices, start = {}, 0
        for part, size in parts.items():
            matrices[part] = self.matrix(rows.take(start, start + size))
            start += size
        return matrices

    def projection(self, base: str, part: str, n: int, k: int) -> MatrixSpec:
        name = f"{base}{part}_proj"
        has_bias = part in self.spec.biases
        bias = self.store.vector(f"{name}.bias", n) if has_bias else None
        return self.matrix(self.store.rows(f"{name}.weight", n, k), bias)

    def layer(self, i: int) -> LayerPlan:
        base, spec = f"model.layers.{i}.", self.spec
        attention = base + "self_attn."
        layer = LayerPlan()
        sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
        if spec.family.merged:
            layer.matrices |= self.merged(attention + "qkv_proj", sizes, spec.hidden_size)
        else:
            for part, size in sizes.items():
                layer.matrices[part] = self.projection(attention, part, size, spec.hidden_size)
        layer.matrices["o"] = self.projection(attention, "o", spec.hidden_size, spec.q_size)
        if spec.has_experts(i):
            layer.matrices |= self.experts(base)
        else:
            layer.matrices |= self.feed_forward(base + "mlp.")
        for part, name in norm_names(spec.family).items():
            layer.vectors[part] = self.norm(f"{base}{name}.weight", spec.hidden_size)
        if spec.family.head_norms:
            whole = spec.family.whole_norms
            for part, size in (("q_norm", spec.q_size), ("k_norm", spec.kv_size)):
                name = f"{attention}{part}.weight"
                layer.vectors[part] = self.norm(name, size if whole else spec.head_dim)
        return layer

    def feed_forward(self, base: str) -> dict[str, MatrixSpec]:
        size, hidden = self.spec.intermediate_size, self.spec.hidden_size
        if self.spec.family.merged:
            matrices = self.merged(base + "gate_up_proj", {"gate": size, "up": size}, hidden)
        else:
            matrices = {part: self.projection(base, part, size, hidden) for part in ("gate", "up")}
        return matrices | {"down": self.projection(base, "down", hidden, size)}

    def experts(self, base: str) -> dict[str, MatrixSpec]:
        """The router, and for each projection the rows of all experts, one behind the other."""
        experts, hidden = self.spec.experts, self.spec.hidden_size
        assert experts is not None
        is_mixtral = self.store.has(base + "block_sparse_moe.gate.weight")
        base += "block_sparse_moe." if is_mixtral else "mlp."
        router = self.store.rows(base + "gate.weight", experts.count, hidden)
        kind = own_kind(router.type_name)
        matrices = {"router": MatrixSpec(router, Kind.FLOAT if kind.is_quantised else kind)}
        shapes = dict.fromkeys(("gate", "up"), (experts.size, hidden))
        shapes["down"] = (hidden, experts.size)
        rows: dict[str, Rows | Stack]
        if self.store.has(base + "experts.gate_up_proj"):
            rows = self.merged_experts(base + "experts.", experts.count, shapes)
        elif self.store.has(base + "experts.gate_proj.weight"):
            rows = {
                part: self.store.rows(f"{base}experts.{part}_proj.weight", experts.count, *shape)
                for part, shape in shapes.items()
            }
        else:
            names = MIXTRAL_PARTS if is_mixtral else EXPERT_PARTS
            rows = {
                part: Stack(
                    tuple(
                        self.store.rows(f"{base}experts.{i}.{names[part]}.weight", *shape)
                        for i in range(experts.count)
                    )
                )
                for part, shape in shapes.items()
            }
        return matrices | {part: self.matrix(part_rows) for part, part_rows in rows.items()}

    def merged_experts(
        self, base: str, count: int, shapes: dict[str, tuple[int, int]]
    ) -> dict[str, Rows | Stack]:
        """All experts in one tensor, with the rows of gate and up of an expert in one matrix."""
        size, hidden = shapes["gate"]
        gate_up = self.store.rows(base + "gate_up_proj", count, 2 * size, hidden)
        order = gate_up.index.reshape(count, 2, -1)
        gate, up = (replace(gate_up, index=order[:, i].reshape(-1)) for i in range(2))
        down = self.store.rows(base + "down_proj", count, *shapes["down"])
        return {"gate": gate, "up": up, "down": down}

    def norm(self, name: str, size: int) -> Vector:
        """The factors of a norm: its weights, with the family's offset already added."""
        offset = self.spec.family.norm_offset - self.store.norm_offset
        return np.asarray(self.store.vector(name, size) + np.float32(offset), dtype=np.float32)


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

    Raises `ModelLoadError` for a tensor that is missing, surplus or of another shape than `spec`
    implies, and `UnsupportedModelError` for its type.
    """
    planner = _Planner(spec, store, quantize)
    plan = WeightPlan(
        layers=[planner.layer(i) for i in range(spec.num_layers)],
        embedding=planner.end("model.embed_tokens.weight"),
        head=None if spec.tied else planner.end("lm_head.weight"),
        final_norm=planner.norm("model.norm.weight", spec.hidden_size),
    )
    surplus = [name for name in store.unused() if not _is_harmless(spec, name)]
    if surplus:
        raise ModelLoadError(
            f"{store.model} has weights that its config.json does not account for, so its answers "
            f"would be wrong: {', '.join(surplus[:3])}"
        )
    return plan


def _is_harmless(spec: ModelSpec, name: str) -> bool:
    """True for what real files have beside the decoder's own weights.

    These are buffers that are computed here, a copy of the embedding as the head, and other heads.
    """
    is_copy = spec.tied and name == "lm_head.weight"
    return is_copy or name.endswith(".inv_freq") or not name.startswith(("model.", "lm_head."))
