"""The tensors of one layer, and the packed format of each."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.native.bindings import Kind, Mixer
from stonechat_models.backends.native.packing import MatrixSpec
from stonechat_models.backends.native.plan.composites import PREFIXES
from stonechat_models.backends.native.plan.families import Family
from stonechat_models.backends.native.plan.recurrence import Recurrence
from stonechat_models.backends.native.plan.spec import ModelSpec
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


def kept_kind(type_name: str, quantize: Quantize, *, is_end: bool) -> Kind:
    """The packed format of a matrix of a stored type: as stored, or as `quantize` requests.

    `is_end` is True for the embedding and the head. int4 quantises them to 8 bits only; a Q4_0 end
    stays as stored. Other weights of 4 bits stay as stored with int4.
    """
    stored_kind = own_kind(type_name)
    if quantize == "int8" or (quantize == "int4" and is_end):
        return stored_kind if stored_kind == Kind.Q4_0 and is_end else Kind.Q8_0
    if quantize == "int4":
        return stored_kind if stored_kind.is_4_bit else Kind.Q4_1
    return stored_kind


class Planner:
    """Finds the tensors of a decoder in a store. Raises what `plan_weights` raises."""

    def __init__(self, spec: ModelSpec, store: Store, quantize: Quantize) -> None:
        self.spec = spec
        self.store = store
        self.quantize = quantize
        embedding = "embed_tokens.weight"
        self.prefix = next((p for p in PREFIXES if store.has(p + embedding)), PREFIXES[0])

    def stored_name(self, name: str) -> str:
        """What the files call a tensor of this usual name."""
        for usual, own in self.spec.family.stored_names:
            name = name.replace(usual, own)
        return self.prefix + name.removeprefix("model.")

    def has(self, name: str) -> bool:
        return self.store.has(self.stored_name(name))

    def rows(self, name: str, *shape: int) -> Rows:
        return self.store.rows(self.stored_name(name), *shape)

    def vector(self, name: str, *shape: int) -> Vector:
        return self.store.vector(self.stored_name(name), *shape)

    def matrix(
        self, rows: Rows | Stack, bias: Vector | None = None, *, is_end: bool = False
    ) -> MatrixSpec:
        return MatrixSpec(rows, kept_kind(rows.type_name, self.quantize, is_end=is_end), bias)

    def float_matrix(self, rows: Rows) -> MatrixSpec:
        """A small matrix whose outputs need all digits."""
        kind = own_kind(rows.type_name)
        return MatrixSpec(rows, Kind.F32 if kind.is_quantised else kind)

    def end(self, name: str) -> MatrixSpec:
        rows = self.store.rows(name, self.spec.vocab_size, self.spec.hidden_size)
        return self.matrix(rows, is_end=True)

    def merged(
        self, name: str, parts: dict[str, int], k: int, *, has_bias: bool = False
    ) -> dict[str, MatrixSpec]:
        """Split a merged projection into consecutive parts; `parts` holds their numbers of rows."""
        size = sum(parts.values())
        rows = self.rows(f"{name}.weight", size, k)
        bias = self.vector(f"{name}.bias", size) if has_bias else None
        matrices, start = {}, 0
        for part, count in parts.items():
            end = start + count
            matrices[part] = self.matrix(
                rows.take(start, end), None if bias is None else bias[start:end]
            )
            start = end
        return matrices

    def projection(self, base: str, part: str, n: int, k: int) -> MatrixSpec:
        name = f"{base}{part}_proj"
        has_bias = part in self.spec.biases
        bias = self.vector(f"{name}.bias", n) if has_bias else None
        return self.matrix(self.rows(f"{name}.weight", n, k), bias)

    def layer(self, i: int) -> LayerPlan:
        base, spec = f"model.layers.{i}.", self.spec
        mixer, recurrence = spec.mixer(i), spec.recurrence
        if mixer is Mixer.ATTENTION or recurrence is None:
            layer = self.attention(base + "self_attn.")
        elif mixer is Mixer.SHORT_CONVOLUTION:
            layer = self.short_convolution(base + "conv.", recurrence)
        else:
            layer = self.delta_rule(base + "linear_attn.", recurrence)
        if spec.has_experts(i):
            layer.matrices |= self.experts(base)
        else:
            layer.matrices |= self.feed_forward(base + "mlp.")
        for part, name in norm_names(spec.family).items():
            layer.vectors[part] = self.norm(f"{base}{name}.weight", spec.hidden_size)
        return layer

    def attention(self, base: str) -> LayerPlan:
        spec, layer = self.spec, LayerPlan()
        sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
        if spec.family.merged:
            layer.matrices |= self.merged(base + "qkv_proj", sizes, spec.hidden_size)
        elif spec.family.has_gates:
            layer.matrices |= self.gated_queries(base)
            del sizes["q"]
        if not spec.family.merged:
            for part, size in sizes.items():
                layer.matrices[part] = self.projection(base, part, size, spec.hidden_size)
        layer.matrices["o"] = self.projection(base, "o", spec.hidden_size, spec.q_size)
        if spec.family.head_norms:
            whole = spec.family.whole_norms
            for part, size in (("q_norm", spec.q_size), ("k_norm", spec.kv_size)):
                name = f"{base}{part}.weight"
                layer.vectors[part] = self.norm(name, size if whole else spec.head_dim)
        return layer

    def gated_queries(self, base: str) -> dict[str, MatrixSpec]:
        """Queries, and the gates of attention's output. The file has both of a head together."""
        both = self.projection(base, "q", 2 * self.spec.q_size, self.spec.hidden_size)
        assert isinstance(both.rows, Rows)
        shape = (self.spec.num_heads, 2, self.spec.head_dim)
        order = both.rows.index.reshape(shape)
        biases = None if both.bias is None else both.bias.reshape(shape)
        return {
            part: MatrixSpec(
                replace(both.rows, index=order[:, i].reshape(-1)),
                both.kind,
                None if biases is None else biases[:, i].reshape(-1),
            )
            for i, part in enumerate("qz")
        }

    def short_convolution(self, base: str, recurrence: Recurrence) -> LayerPlan:
        """Plan a layer with a short convolution.

        The rows of its `in_proj` are the input's gate, the output's gate and the input, in order.
        """
        hidden, has_bias = self.spec.hidden_size, recurrence.has_biases
        parts = dict.fromkeys("kqv", hidden)
        layer = LayerPlan(self.merged(base + "in_proj", parts, hidden, has_bias=has_bias))
        output = {"o": hidden}
        layer.matrices |= self.merged(base + "out_proj", output, hidden, has_bias=has_bias)
        layer.vectors["taps"] = self.taps(base + "conv.weight", recurrence)
        if has_bias:
            layer.vectors["taps_bias"] = self.vector(base + "conv.bias", hidden)
        return layer

    def delta_rule(self, base: str, recurrence: Recurrence) -> LayerPlan:
        hidden, heads = self.spec.hidden_size, recurrence.value_heads
        key_size, value_size = recurrence.key_size, recurrence.value_size
        parts = {"q": key_size, "k": key_size, "v": value_size}
        layer = LayerPlan(self.merged(base + "in_proj_qkv", parts, hidden))
        layer.matrices["z"] = self.matrix(self.rows(base + "in_proj_z.weight", value_size, hidden))
        for part in "ab":
            rows = self.rows(f"{base}in_proj_{part}.weight", heads, hidden)
            layer.matrices[part] = self.float_matrix(rows)
        layer.matrices["o"] = self.matrix(self.rows(base + "out_proj.weight", hidden, value_size))
        layer.vectors["taps"] = self.taps(base + "conv1d.weight", recurrence)
        decay = self.vector(base + "A_log", heads)
        with np.errstate(over="ignore"):
            layer.vectors["decay"] = decay if self.store.is_gguf else -np.exp(decay)
        layer.vectors["step_bias"] = self.vector(base + "dt_bias", heads)
        layer.vectors["value_norm"] = self.vector(base + "norm.weight", recurrence.value_dim)
        return layer

    def taps(self, name: str, recurrence: Recurrence) -> Vector:
        """The weights of a convolution, float32[taps, channels]."""
        middle = () if self.store.is_gguf else (1,)
        kernel = self.vector(name, recurrence.channels, *middle, recurrence.taps)
        return kernel.reshape(recurrence.channels, recurrence.taps).T

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
        is_mixtral = self.has(base + "block_sparse_moe.gate.weight")
        base += "block_sparse_moe." if is_mixtral else "mlp."
        router = self.rows(base + "gate.weight", experts.count, hidden)
        matrices = {"router": self.float_matrix(router)}
        shapes = dict.fromkeys(("gate", "up"), (experts.size, hidden))
        shapes["down"] = (hidden, experts.size)
        rows: dict[str, Rows | Stack]
        if self.has(base + "experts.gate_up_proj"):
            rows = self.merged_experts(base + "experts.", experts.count, shapes)
        elif self.has(base + "experts.gate_proj.weight"):
            rows = {
                part: self.rows(f"{base}experts.{part}_proj.weight", experts.count, *shape)
                for part, shape in shapes.items()
            }
        else:
            names = MIXTRAL_PARTS if is_mixtral else EXPERT_PARTS
            rows = {
                part: Stack(
                    tuple(
                        self.rows(f"{base}experts.{i}.{names[part]}.weight", *shape)
                        for i in range(experts.count)
                    )
                )
                for part, shape in shapes.items()
            }
        if experts.shared_size:
            matrices |= self.shared_expert(base, experts.shared_size)
        return matrices | {part: self.matrix(part_rows) for part, part_rows in rows.items()}

    def shared_expert(self, base: str, size: int) -> dict[str, MatrixSpec]:
        hidden = self.spec.hidden_size
        shapes = {"gate": (size, hidden), "up": (size, hidden), "down": (hidden, size)}
        matrices = {
            f"shared_{part}": self.matrix(
                self.rows(f"{base}shared_expert.{part}_proj.weight", *shape)
            )
            for part, shape in shapes.items()
        }
        name = base + "shared_expert_gate.weight"
        is_vector = self.store.is_gguf and self.store.num_dimensions(self.stored_name(name)) == 1
        router = self.rows(name, *(() if is_vector else (1,)), hidden)
        return matrices | {"shared_router": self.float_matrix(router)}

    def merged_experts(
        self, base: str, count: int, shapes: dict[str, tuple[int, int]]
    ) -> dict[str, Rows | Stack]:
        """All experts in one tensor, with the rows of gate and up of an expert in one matrix."""
        size, hidden = shapes["gate"]
        gate_up = self.rows(base + "gate_up_proj", count, 2 * size, hidden)
        order = gate_up.index.reshape(count, 2, -1)
        gate, up = (replace(gate_up, index=order[:, i].reshape(-1)) for i in range(2))
        down = self.rows(base + "down_proj", count, *shapes["down"])
        return {"gate": gate, "up": up, "down": down}

    def norm(self, name: str, size: int) -> Vector:
        """The factors of a norm: its weights, with the family's offset already added."""
        offset = self.spec.family.norm_offset - self.store.norm_offset
        return np.asarray(self.vector(name, size) + np.float32(offset), dtype=np.float32)


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
