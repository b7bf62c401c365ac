"""The types of models that give the same logits on several devices as on one."""

SPLIT_TYPES = frozenset(
    {
        *("afmoe", "apertus", "arcee", "aria", "aria_text", "axk1", "aya_vision", "beam"),
        *("cohere", "cohere2", "cohere2_moe", "cohere2_vision", "cosmos3_edge", "cwm"),
        *("deepseek_ocr2", "deepseek_v2", "deepseek_v3", "deepseek_vl", "deepseek_vl_hybrid"),
        *("dots1", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "exaone4", "exaone4_5"),
        *("exaone_moe", "flex_olmo", "flint", "gemma", "gemma2", "gemma3", "gemma3_text"),
        *("gemma4_text", "gemma4_unified", "gemma4_unified_text", "glm", "glm4", "glm46v"),
        *("glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_moe", "glm_ocr", "glmga", "got_ocr2"),
        *("gpt_neox", "granite", "granite_docling", "granite_swa", "granitemoe"),
        *("granitemoe_swa", "granitemoeshared", "helium", "hunyuan_v1_moe", "hy_v3"),
        *("hyperclovax", "hyperclovax_vision_v2", "idefics2", "idefics3", "internlm3"),
        *("internvl", "iquestcoder", "jais2", "janus", "kimi_k25", "kolibri1", "laguna"),
        *("lighton_ocr", "llama", "llama4", "llama4_text", "llava", "llava_next"),
        *("llava_next_video", "llava_onevision", "longcat_flash", "mellum", "mimo_v2_flash"),
        *("minicpm3", "minimax_m2", "ministral", "ministral3", "mistral", "mistral3"),
        *("mistral4", "mixtral", "muse_glimmer", "muse_spark", "nanochat", "olmo", "olmo2"),
        *("olmo3", "olmoe", "ovis2", "paddleocr_vl", "paligemma", "phi", "phi3"),
        *("phi4_multimodal", "pp_chart2table", "qianfan_ocr", "qwen2", "qwen2_5_omni_thinker"),
        *("qwen2_5_vl", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_moe"),
        *("qwen3_omni_moe_thinker", "seed_oss", "smollm3", "smolvlm", "solar_open"),
        *("starcoder2", "vaultgemma", "video_llama_3", "video_llava", "vipllava", "youtu"),
    }
)
"""`tests/models/runtime/ranks/test_split_families.py` compares each of them. Other types have no
plan in transformers, keep a state, or give other logits when they are split. Some of these types
are refused at load with an older transformers, where the packing check fails."""
