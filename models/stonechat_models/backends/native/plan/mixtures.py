"""Mixtures of experts, as config.json describes them.

The defaults for absent config keys are those of transformers.
"""

from dataclasses import dataclass

from stonechat_models.checkpoint.hf_config import HFConfig


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture: the number of experts, the number per token, and an expert's inner size."""

    count: int
    per_token: int
    size: int
    scale_chosen: bool
    """Whether the weights of a token's experts are scaled to add up to one."""
    layers: tuple[bool, ...]
    """For each layer: whether it has experts."""
    shared_size: int = 0
    """The inner size of an expert that all tokens share beside theirs; 0: there is none."""


def read_mixtral_experts(config: HFConfig) -> Experts:
    """Read what Mixtral says."""
    return Experts(
        count=config.keys.size("num_local_experts", 8),
        per_token=config.keys.read("num_experts_per_tok", int, 2),
        size=config.keys.positive("intermediate_size", int),
        scale_chosen=True,
        layers=(True,) * config.num_layers,
    )


def read_qwen3_experts(config: HFConfig) -> Experts:
    """Read what Qwen3-MoE says: some layers may have none."""
    keys = config.keys
    # transformers saves num_experts as num_local_experts, the name that all its mixtures share.
    count = keys.read("num_local_experts", int, keys.read("num_experts", int, 128))
    step, dense = keys.size("decoder_sparse_step", 1), keys.read("mlp_only_layers", list[int], [])
    return Experts(
        count=count,
        per_token=keys.read("num_experts_per_tok", int, 8),
        size=keys.read("moe_intermediate_size", int, 768),
        scale_chosen=keys.read("norm_topk_prob", bool, False),
        layers=tuple(
            i not in dense and count > 0 and (i + 1) % step == 0 for i in range(config.num_layers)
        ),
    )


def read_qwen3_5_experts(config: HFConfig) -> Experts:
    """Read what Qwen3.5-MoE says: all layers have experts, one of them shared."""
    keys = config.keys
    return Experts(
        count=keys.size("num_local_experts", keys.size("num_experts", 256)),
        per_token=keys.read("num_experts_per_tok", int, 8),
        size=keys.read("moe_intermediate_size", int, 512),
        scale_chosen=True,
        layers=(True,) * config.num_layers,
        shared_size=keys.size("shared_expert_intermediate_size", 512),
    )
