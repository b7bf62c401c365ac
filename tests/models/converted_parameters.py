"""What llama.cpp's converter writes for single architectures: metadata, and tensors of RoPE."""

import math
from collections.abc import Callable
from typing import Any

import gguf
import torch

Config = dict[str, Any]
SIGMOID = gguf.ExpertGatingFuncType.SIGMOID


def head_dim(config: Config) -> int:
    size: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return size


def windows(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config["layer_types"]]


def llama(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_dimension_count(head_dim(config))


def granite(writer: gguf.GGUFWriter, config: Config) -> None:
    llama(writer, config)
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    if config.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])


def ssm(
    writer: gguf.GGUFWriter, kernel: int, state: int, groups: int, inner: int, rank: int
) -> None:
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_state_size(state)
    writer.add_ssm_group_count(groups)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_time_step_rank(rank)


def granite_hybrid(writer: gguf.GGUFWriter, config: Config) -> None:
    granite(writer, config)
    inner = config["mamba_expand"] * config["hidden_size"]
    ssm(
        writer,
        config["mamba_d_conv"],
        config["mamba_d_state"],
        config["mamba_n_groups"],
        inner,
        config["mamba_n_heads"],
    )
    is_attention = ["attention" in kind and "linear" not in kind for kind in config["layer_types"]]
    writer.add_head_count_kv([config["num_key_value_heads"] * here for here in is_attention])
    writer.add_rope_scaling_finetuned(False)


def nemotron_h(writer: gguf.GGUFWriter, config: Config) -> None:
    kinds = config["layers_block_type"]
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    ssm(
        writer,
        config["conv_kernel"],
        config["ssm_state_size"],
        config["n_groups"],
        inner,
        config["mamba_num_heads"],
    )
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_head_count_kv(
        [config["num_key_value_heads"] * (k in ("attention", "full_attention")) for k in kinds]
    )
    has_experts = "moe" in kinds
    size = config["moe_intermediate_size" if has_experts else "intermediate_size"]
    writer.add_feed_forward_length([size * (k in ("moe", "mlp")) for k in kinds])
    if has_experts:
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
        writer.add_expert_count(config["n_routed_experts"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_group_count(config["n_group"])
        writer.add_moe_latent_size(config["moe_latent_size"])


def falcon_h1(writer: gguf.GGUFWriter, config: Config) -> None:
    ssm(
        writer,
        config["mamba_d_conv"],
        config["mamba_d_state"],
        config["mamba_n_groups"],
        config["mamba_d_ssm"],
        config["mamba_n_heads"],
    )


def olmo2(writer: gguf.GGUFWriter, config: Config) -> None:
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(windows(config))


def gemma4(writer: gguf.GGUFWriter, config: Config) -> None:
    full = config["per_layer_config"]
    full = next(iter(full.values()))
    is_local = windows(config)
    writer.add_sliding_window(config["sliding_window"])
    if config["final_logit_softcapping"] is not None:
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"] or 0)
    writer.add_sliding_window_pattern(is_local)
    for length, swa in (("key", "key"), ("value", "value")):
        getattr(writer, f"add_{length}_length")(full["head_dim"])
        getattr(writer, f"add_{swa}_length_swa")(config["head_dim"])
    if config["moe_intermediate_size"] is not None:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config["use_double_wide_mlp"]:
        count, size = config["num_hidden_layers"], config["intermediate_size"]
        first = count - config["num_kv_shared_layers"]
        writer.add_feed_forward_length([size * (1 if i < first else 2) for i in range(count)])
    heads = config["num_key_value_heads"]
    if "num_key_value_heads" in full:
        writer.add_head_count_kv([heads if w else full["num_key_value_heads"] for w in is_local])
    else:
        writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(full["head_dim"])
    writer.add_rope_dimension_count_swa(config["head_dim"])


def gemma4_rope(config: Config) -> list[tuple[str, list[float]]]:
    size = next(iter(config["per_layer_config"].values()))["head_dim"]
    share = config["rope_parameters"]["full_attention"]["partial_rotary_factor"]
    rotated = int(size * share / 2)
    return [("rope_freqs.weight", [1.0] * rotated + [1e30] * (size // 2 - rotated))]


def gpt_oss(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def mistral3(writer: gguf.GGUFWriter, config: Config) -> None:
    llama(writer, config)
    if config["model_type"] == "ministral3":
        rope = config["rope_parameters"]
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def qwen_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def partial_rope(writer: gguf.GGUFWriter, config: Config) -> None:
    share = config["rope_parameters"]["partial_rotary_factor"]
    writer.add_rope_dimension_count(int(head_dim(config) * share))


def qwen35(writer: gguf.GGUFWriter, config: Config) -> None:
    if "moe_intermediate_size" in config:
        qwen_moe(writer, config)
    ssm(
        writer,
        config["linear_conv_kernel_dim"],
        config["linear_key_head_dim"],
        config["linear_num_key_heads"],
        config["linear_value_head_dim"] * config["linear_num_value_heads"],
        config["linear_num_value_heads"],
    )
    writer.add_full_attention_interval(config["layer_types"].index("full_attention") + 1)
    partial_rope(writer, config)


def routed(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_leading_dense_block_count(
        config["mlp_layer_types"].count("dense")
        if "mlp_layer_types" in config
        else config["first_k_dense_replace"]
    )
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config["norm_topk_prob"]:
        writer.add_expert_weights_norm(True)


def afmoe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["num_shared_experts"])
    writer.add_leading_dense_block_count(config["num_dense_layers"])
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(config["route_scale"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_sliding_window(config["sliding_window"])


def glm4_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    partial_rope(writer, config)
    routed(writer, config)
    writer.add_expert_gating_func(SIGMOID)


def deepseek2(writer: gguf.GGUFWriter, config: Config) -> None:
    rank, rotary = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count_kv(1)
    if config["model_type"] != "youtu":
        routed(writer, config)
    if config["model_type"] == "deepseek_v3":  # its config.json has `scoring_func`
        writer.add_expert_gating_func(SIGMOID)
    if config["q_lora_rank"]:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rotary)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotary)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rotary)
    scale = config["rope_parameters"].get("mscale_all_dim")
    if scale is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * scale)
    if "llama_4_scaling_beta" in config["rope_parameters"]:
        writer.add_attn_temperature_scale(config["rope_parameters"]["llama_4_scaling_beta"])


def lfm2(writer: gguf.GGUFWriter, config: Config) -> None:
    count = config["num_key_value_heads"]
    writer.add_head_count_kv([count * (k == "full_attention") for k in config["layer_types"]])
    writer.add_shortconv_l_cache(config["conv_L_cache"])
    if config["model_type"] == "lfm2":
        writer.add_feed_forward_length(config["intermediate_size"])
        return
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config["num_dense_layers"])
    writer.add_expert_gating_func(SIGMOID)


def phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = config["rope_parameters"]
    original = rope["original_max_position_embeddings"]
    size = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(rope.get("partial_rotary_factor", 1.0) * size))
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_sliding_window(config["sliding_window"] or 0)
    scale = config["max_position_embeddings"] / original
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def phi3_rope(config: Config) -> list[tuple[str, list[float]]]:
    rope = config["rope_parameters"]
    if rope["rope_type"] != "longrope":
        return []
    return [(f"rope_factors_{kind}.weight", rope[f"{kind}_factor"]) for kind in ("long", "short")]


def exaone4(writer: gguf.GGUFWriter, config: Config) -> None:
    if config["sliding_window"] is not None:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(windows(config))


def minimax_m2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    partial_rope(writer, config)


def llama4(writer: gguf.GGUFWriter, config: Config) -> None:
    llama(writer, config)
    writer.add_feed_forward_length(config["intermediate_size_mlp"])
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def llama3_rope(config: Config) -> list[tuple[str, list[float]]]:
    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return []
    size, context = head_dim(config), rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    divisors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / size)
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return [("rope_freqs.weight", divisors)]


def olmoe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_layer_norm_rms_eps(1e-5)


def hunyuan(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = config["rope_parameters"]
    if rope["rope_type"] == "dynamic":
        size = config["head_dim"]
        writer.add_rope_freq_base(rope["rope_theta"] * rope["alpha"] ** (size / (size - 2)))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
        writer.add_rope_scaling_orig_ctx_len(256 * 1024)
        writer.add_context_length(256 * 1024)


def hunyuan_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_shared_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_used_count(config["moe_topk"])
    writer.add_expert_shared_count(1)


def ernie_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_count(config["moe_num_experts"])
    writer.add_expert_used_count(config["moe_k"])
    writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
    writer.add_leading_dense_block_count(config["moe_layer_start_index"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["moe_num_shared_experts"])


def mamba(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(1 << 20)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    inner = config["expand"] * config["hidden_size"]
    rank = config["time_step_rank"] if config["model_type"] == "mamba" else config["num_heads"]
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_time_step_rank(rank)
    if config["model_type"] == "mamba":
        writer.add_ssm_dt_b_c_rms(False)
    else:
        writer.add_ssm_group_count(config["n_groups"])


def minicpm(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def phimoe(writer: gguf.GGUFWriter, config: Config) -> None:
    phi3(writer, config)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def exaone_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    exaone4(writer, config)
    size, shared = config["moe_intermediate_size"], config["num_shared_experts"]
    writer.add_expert_feed_forward_length(size)
    writer.add_expert_shared_count(shared)
    writer.add_expert_shared_feed_forward_length(size * shared)
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_gating_func(SIGMOID)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def mimo2(writer: gguf.GGUFWriter, config: Config) -> None:
    count, is_local = config["num_key_value_heads"], windows(config)
    share = config["rope_parameters"]["full_attention"]["partial_rotary_factor"]
    writer.add_head_count_kv([count * (2 if local else 1) for local in is_local])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(is_local)
    writer.add_value_length(config["v_head_dim"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_rope_dimension_count(int(config["head_dim"] * share))
    writer.add_float32("mimo2.attention.value_scale", config["attention_value_scale"])
    writer.add_expert_gating_func(SIGMOID)


def glm_dsa(writer: gguf.GGUFWriter, config: Config) -> None:
    deepseek2(writer, config)
    writer.add_expert_gating_func(SIGMOID)
    writer.add_indexer_head_count(config["index_n_heads"])
    writer.add_indexer_key_length(config["index_head_dim"])
    writer.add_indexer_top_k(config["index_topk"])


def mellum(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(windows(config))


def laguna(writer: gguf.GGUFWriter, config: Config) -> None:
    rope, size = config["rope_parameters"], config["head_dim"]
    writer.add_head_count(config["num_attention_heads_per_layer"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(config["moe_routed_scaling_factor"])
    writer.add_expert_gating_func(SIGMOID)
    writer.add_leading_dense_block_count(config["mlp_layer_types"].count("dense"))
    full, local = (rope[f"{kind}_attention"] for kind in ("full", "sliding"))
    writer.add_rope_dimension_count(int(size * full["partial_rotary_factor"]))
    writer.add_rope_dimension_count_swa(int(size * local["partial_rotary_factor"]))


def minicpm3(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])


def kimi_linear(writer: gguf.GGUFWriter, config: Config) -> None:
    rank, rotary = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count_kv([int(k == "full_attention") for k in config["layer_types"]])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_kda_head_dim(config["linear_head_dim"])
    writer.add_kv_lora_rank(rank)
    writer.add_rope_dimension_count(rotary)
    writer.add_key_length(rank + rotary)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotary)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_expert_used_count(config["num_experts_per_token"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["num_shared_experts"])
    writer.add_leading_dense_block_count(config["mlp_layer_types"].count("dense"))
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_gating_func(SIGMOID)


def jamba(writer: gguf.GGUFWriter, config: Config) -> None:
    count, offset = config["num_key_value_heads"], config["attn_layer_offset"]
    layers, period = range(config["num_hidden_layers"]), config["attn_layer_period"]
    writer.add_head_count_kv([count * (i % period == offset) for i in layers])
    writer.add_ssm_conv_kernel(config["mamba_d_conv"])
    writer.add_ssm_inner_size(config["mamba_expand"] * config["hidden_size"])
    writer.add_ssm_state_size(config["mamba_d_state"])
    writer.add_ssm_time_step_rank(config["mamba_dt_rank"])


def gemma3n(writer: gguf.GGUFWriter, config: Config) -> None:
    normal = torch.distributions.Normal(0, 1)
    shares = torch.tensor(config["activation_sparsity_pattern"], dtype=torch.float32)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_altup_active_idx(config["altup_active_idx"])
    writer.add_altup_num_inputs(config["altup_num_inputs"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    writer.add_activation_sparsity_scale(normal.icdf(shares).tolist())
    writer.add_sliding_window_pattern(windows(config))


PARAMETERS: dict[str, Callable[[gguf.GGUFWriter, Config], None]] = {
    "llama": llama,
    "granite": granite,
    "granitemoe": granite,
    "granitehybrid": granite_hybrid,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "falcon-h1": falcon_h1,
    "smollm3": llama,
    "olmo2": olmo2,
    "gemma3": olmo2,
    "gemma4": gemma4,
    "gpt-oss": gpt_oss,
    "mistral3": mistral3,
    "qwen2moe": qwen_moe,
    "qwen3vlmoe": qwen_moe,
    "qwen35": qwen35,
    "qwen35moe": qwen35,
    "qwen3next": qwen35,
    "glm4": partial_rope,
    "glm4moe": glm4_moe,
    "deepseek2": deepseek2,
    "lfm2": lfm2,
    "lfm2moe": lfm2,
    "phi3": phi3,
    "mistral4": deepseek2,
    "exaone4": exaone4,
    "minimax-m2": minimax_m2,
    "llama4": llama4,
    "apertus": llama,
    "arcee": llama,
    "minicpm": minicpm,
    "phimoe": phimoe,
    "exaone-moe": exaone_moe,
    "mimo2": mimo2,
    "glm-dsa": glm_dsa,
    "deepseek32": glm_dsa,
    "mellum": mellum,
    "laguna": laguna,
    "minicpm3": minicpm3,
    "kimi-linear": kimi_linear,
    "jamba": jamba,
    "gemma3n": gemma3n,
    "olmoe": olmoe,
    "hunyuan-dense": hunyuan,
    "hunyuan-moe": hunyuan_moe,
    "ernie4_5-moe": ernie_moe,
    "dots1": routed,
    "afmoe": afmoe,
    "mamba": mamba,
    "mamba2": mamba,
}
EXTRA: dict[str, Callable[[Config], list[tuple[str, list[float]]]]] = {
    "gemma4": gemma4_rope,
    "phi3": phi3_rope,
    "phimoe": phi3_rope,
    "minicpm": phi3_rope,
    "minicpm3": phi3_rope,
    "llama": llama3_rope,
    "llama4": llama3_rope,
    "exaone": llama3_rope,
    "exaone4": llama3_rope,
    "apertus": llama3_rope,
}
