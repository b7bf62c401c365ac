"""The sizes of tiny models of every type: by the name of a config's attribute, and by type."""

from typing import Any

from tests.models.tiny_models import VOCAB_SIZE

_NAMES: dict[int, str] = {
    VOCAB_SIZE - 6: "unpadded_vocab_size",
    VOCAB_SIZE: "vocab_size decoder_vocab_size vocab_size_per_layer_input",
    256: "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
    "keep_window_size",
    64: "mamba_d_ssm",
    48: "intermediate_size ffn_dim decoder_ffn_dim d_inner dff ffn_hidden_size dim_ff d_ff "
    "intermediate_size_mlp dense_intermediate_size feed_forward_size attention_chunk_size "
    "encoder_ffn_dim",
    32: "hidden_size n_embd d_model embedding_dim embedding_size emb_dim word_embed_proj_dim "
    "lru_width attention_window_size embed_dim chunk_size out_hidden_size projection_dim "
    "dim_model_base hidden_size_global projector_hidden_size",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "shared_intermediate_size moe_shared_expert_intermediate_size share_expert_dim "
    "shared_experts_intermediate_size moe_hidden_size",
    16: "head_dim sliding_window sliding_window_size window_size local_attention kv_lora_rank "
    "q_lora_rank query_pre_attn_scalar index_topk index_n_heads index_head_dim v_head_dim "
    "kv_channels swa_head_dim mamba_d_head mamba_head_dim o_lora_rank global_head_dim "
    "hidden_size_per_layer_input local_attention_window_len attention_head_size laurel_rank "
    "patch_size prompt_length hc_lowrank mamba_headdim dim_head adapter_rank router_hidden_size "
    "gated_norm_rank",
    8: "qk_rope_head_dim qk_nope_head_dim mamba_d_state state_size ssm_state_size rotary_dim "
    "linear_key_head_dim linear_value_head_dim mamba_chunk_size block_size linear_head_dim d_rel "
    "index_block_size d_head",
    4: "num_attention_heads n_head n_heads attention_heads decoder_attention_heads num_experts "
    "n_routed_experts num_local_experts moe_num_experts linear_num_value_heads mamba_n_heads "
    "mamba_num_heads n_mamba_heads num_heads mamba_dt_rank time_step_rank linear_num_heads "
    "swa_num_attention_heads zero_expert_num num_sliding_attention_heads heads_per_ngram "
    "encoder_attention_heads",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers layers encoder_layers depth "
    "num_blocks num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_k "
    "moe_topk top_k_experts linear_num_key_heads swa_num_key_value_heads hc_mult split_ngram_parts "
    "num_global_key_value_heads index_topk_blocks o_groups",
    1: "n_group topk_group num_expert_group first_k_dense_replace mamba_n_groups n_shared_experts "
    "num_shared_experts moe_num_shared_experts n_groups num_dense_layers moe_layer_start_index",
}
SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
"""What an attribute becomes in a config that has it, and has a number above 0 there."""
SET_IF_NULL = ("head_dim", "num_key_value_heads", "n_routed_experts")
"""Attributes that also get their size where a config has no number by default."""


def _rope(**changes: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **changes}


def _sections(*sections: int, **changes: Any) -> dict[str, Any]:
    """Rotary embedding over the three coordinates of an image."""
    return {"rope_parameters": _rope(mrope_section=list(sections), **changes)}


_WINDOWED_ROPE = {"sliding_attention": _rope(), "full_attention": _rope()}
_BYTES = {"head_dim": 8, "vocab_size": 260, "hidden_size_global": 32, "intermediate_size": 48}
_ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "attention_head_dim": 16,
    "attention_hidden_size": 64,
}
_CONV = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
_ROUTED = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}

OVERRIDES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        **{"image_token_id": 8, "image_token_offset": 64},
        **{"audio_token_id": 9, "audio_token_offset": 128},
    },
    "apertus1p5_vision_tokenizer": {
        **{"embed_dim": 32, "latent_channels": 32, "base_channels": 32, "codebook_size": 64},
    },
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "blt": {"vocab_size": 260, "encoder_hash_byte_group_vocab": 500},
    "blt_patcher": _BYTES,
    "blt_local_encoder": _BYTES,
    "blt_local_decoder": _BYTES,
    "blt_global_transformer": _BYTES,
    "chameleon": {"vocabulary_map": {"<image>": 8}},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": _WINDOWED_ROPE,
    },
    "cosmos3_edge_text": _sections(4, 2, 2),
    "dbrx": {
        "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "deepseek_v2": _ROUTED,
    "dots1": _ROUTED,
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 8,
        "swa_v_head_dim": 16,
    },
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dory": {
        **{"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
        **{"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    },
    "ernie4_5_vl_moe_text": {**_sections(1, 1, 2), "moe_intermediate_size": [24, 24]},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "intermediate_size": 48,
    },
    "glm4v_text": _sections(2, 1, 1),
    "glm4v_moe_text": _sections(2, 1, 1, partial_rotary_factor=1.0),
    "glm5_next_text": {
        "num_key_value_heads": 4,
        "qk_rope_head_dim": 0,
        "head_dim": 0,
        "index_kpool": 4,
    },
    "glm_ocr_text": _sections(2, 1, 1),
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
    },
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "downsample_rate": "4/8",
        "vision_config": {"hidden_size": 64},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "helium": {"head_dim": 8},
    "hunyuan_vl_text": _sections(2, 2, 2, 2),
    "hy_v4_vl_text": _sections(2, 1, 1),
    "inkling2_vision": {"text_hidden_size": 32},
    "granitemoehybrid": {"num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": _CONV,
    "lfm2_moe": _CONV,
    "llama4_text": {"attention_chunk_size": 16, "floor_scale": 8, "no_rope_layers": [1, 0, 1]},
    "minimax_m3_vl_text": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "minimax_m3_sparse", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "dense"],
        "index_n_heads": 2,
        "index_topk_blocks": 4,
    },
    "mistral4": {
        "rope_parameters": _rope(llama_4_scaling_beta=0.1, original_max_position_embeddings=16)
    },
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "molmo2_adapter": {"vision_feature_layer": [0, 1], "text_hidden_size": 32},
    "muse_spark_audio": {
        "num_hidden_layers": 2,
        "patch_sizes": [4, 4],
        "hidden_sizes": [32, 32],
        "depths": [1, 1],
    },
    "paddleocr_vl_text": _sections(4, 2, 2),
    "phimoe": {"sliding_window": 16},
    "qwen2_5_omni_text": _sections(2, 1, 1),
    "qwen2_5_vl_text": _sections(2, 1, 1),
    "qwen2_vl_text": _sections(2, 1, 1),
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 100,
    },
    "radio": {"video_temporal_patch_size": 2},
    "recurrent_gemma": {"num_hidden_layers": 3, "head_dim": 8},
    "step3p5": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "dense"],
        "sliding_window": 16,
        "rope_parameters": _WINDOWED_ROPE,
    },
    "unlimited_ocr_text": {
        "num_key_value_heads": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
    },
    "wavtokenizer_encoder": {"codebook_dim": 32, "codebook_size": 64},
    "zamba": {**_ZAMBA, "n_mamba_heads": 2},
    "zamba2": _ZAMBA,
    "zaya": {"num_experts_per_tok": 1},
}
"""What the type of a config, or of a part of one, needs beside `SIZES`."""
