"""Plans the loading of a decoder: which tensors it has, and the packed format of each."""

from dataclasses import dataclass

from stonechat_models.backends.native.bindings import Library
from stonechat_models.backends.native.packing import MatrixSpec, packed_bytes
from stonechat_models.backends.native.plan.composites import HEAD_PREFIXES, HEADS
from stonechat_models.backends.native.plan.layers import LayerPlan, Planner, Vector
from stonechat_models.backends.native.plan.spec import ModelSpec
from stonechat_models.backends.native.tensor_source import Store
from stonechat_models.config import Quantize
from stonechat_models.errors import ModelLoadError


@dataclass(slots=True)
class WeightPlan:
    """All weights of a model. `head` is None if the embedding also serves as the head."""

    layers: list[LayerPlan]
    embedding: MatrixSpec
    head: MatrixSpec | None
    final_norm: Vector
    prefixes: tuple[str, ...]
    """How the names of these weights begin in the files, and no others."""

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


def end_names(spec: ModelSpec, store: Store, embedding: str, head: str) -> tuple[str, str | None]:
    """Return the tensors of the embedding and of the head; None: the head is the embedding.

    They are those that transformers uses: tied ends may be stored as either, and if both are
    stored and differ, they are not tied.
    """
    if not spec.tied:
        return embedding, head
    if not store.has(head):
        return embedding, None
    if not store.has(embedding):
        return head, None
    return embedding, None if store.are_equal(embedding, head) else head


def plan_weights(spec: ModelSpec, store: Store, quantize: Quantize) -> WeightPlan:
    """Plan the loading of all weights.

    Raises `ModelLoadError` for a tensor that is missing, surplus or of another shape than `spec`
    implies, and `UnsupportedModelError` for its type.
    """
    planner = Planner(spec, store, quantize)
    usual_name = planner.stored_name("model.embed_tokens.weight")
    usual_head = next((name for name in HEADS if store.has(name)), HEADS[0])
    embedding, head = end_names(spec, store, usual_name, usual_head)
    plan = WeightPlan(
        layers=[planner.layer(i) for i in range(spec.num_layers)],
        embedding=planner.end(embedding),
        head=None if head is None else planner.end(head),
        final_norm=planner.norm("model.norm.weight", spec.hidden_size),
        prefixes=(planner.prefix, *HEAD_PREFIXES),
    )
    surplus = [n for n in store.unused() if not _is_harmless(spec, n, plan.prefixes)]
    if surplus:
        raise ModelLoadError(
            f"{store.model} has weights that its config.json does not account for, so its answers "
            f"would be wrong: {', '.join(surplus[:3])}"
        )
    return plan


def _is_harmless(spec: ModelSpec, name: str, prefixes: tuple[str, ...]) -> bool:
    """True for what real files have beside the decoder's own weights.

    These are buffers that are computed here, a copy of the embedding as the head, other heads, and
    the other parts of a model.
    """
    is_copy = spec.tied and name in HEADS
    is_other = not name.startswith(prefixes)
    return is_copy or is_other or name.endswith(".inv_freq")
