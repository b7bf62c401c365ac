"""The language models of published configs, which leave much to the classes of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, MistralConfig

from stonechat_models.backends.native.plan.spec import read_spec
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

QWEN2_ROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
QWEN3_ROPE = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma-3-4b-it": {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "Qwen2-VL-2B-Instruct": {
        "model_type": "qwen2_vl",
        "hidden_act": "silu",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "rope_scaling": QWEN2_ROPE,
        "vocab_size": 151936,
    },
    "Qwen3-VL-4B-Instruct": {
        "model_type": "qwen3_vl",
        "text_config": {
            "head_dim": 128,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_scaling": QWEN3_ROPE,
            "rope_theta": 5000000,
            "vocab_size": 151936,
        },
    },
    "llava-1.5-7b-hf": {
        "model_type": "llava",
        "text_config": {
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "vocab_size": 32064,
        },
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configs_mean_what_transformers_reads(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    config = parse_config(CONFIGS[name], "config.json")
    spec, expected = read_spec(config), AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert spec.num_layers == expected.num_hidden_layers
    assert spec.hidden_size == expected.hidden_size
    assert (spec.num_heads, spec.num_kv_heads) == (
        expected.num_attention_heads,
        expected.num_key_value_heads,
    )
    heads_size = expected.hidden_size // expected.num_attention_heads
    assert spec.head_dim == (getattr(expected, "head_dim", None) or heads_size)
    assert spec.intermediate_size == expected.intermediate_size
    assert (spec.vocab_size, spec.rms_norm_eps) == (expected.vocab_size, expected.rms_norm_eps)
    assert config.max_position_embeddings == expected.max_position_embeddings
    types = getattr(expected, "layer_types", None) or [""] * spec.num_layers
    windows = [expected.sliding_window if t == "sliding_attention" else 0 for t in types]
    assert list(spec.windows) == windows
    sections = expected.rope_parameters.get("mrope_section")
    assert (spec.rotary_axes is None) == (sections is None)
    if spec.rotary_axes is not None:
        assert np.bincount(spec.rotary_axes).tolist() == sections


def test_text_parts_that_scale_the_embeddings_of_images_are_refused() -> None:
    text = {**CONFIGS["llava-1.5-7b-hf"]["text_config"], "model_type": "granite"}
    config = parse_config({"model_type": "llava_next", "text_config": text}, "config.json")
    with pytest.raises(UnsupportedModelError, match="llava_next with a text part of type granite"):
        read_spec(config)


@pytest.mark.parametrize("sections", [[16, 24], [16, 24, 25], [-1, 33, 32]])
def test_sections_that_do_not_fit_are_refused(sections: list[int]) -> None:
    rope = {**QWEN2_ROPE, "mrope_section": sections}
    config = {**CONFIGS["Qwen2-VL-2B-Instruct"], "rope_scaling": rope}
    with pytest.raises(ModelLoadError, match="mrope_section"):
        read_spec(parse_config(config, "config.json"))


@pytest.mark.parametrize("keys", [{}, {"sliding_window": None}, {"sliding_window": 77}])
def test_a_mistral_without_a_window_in_its_config_has_that_of_its_class(
    keys: dict[str, Any],
) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    raw = {"model_type": "mistral", "vocab_size": 99, "intermediate_size": 64, **sizes, **keys}
    window = MistralConfig(**keys).sliding_window
    assert read_spec(parse_config(raw, "config.json")).windows == (window or 0,) * 2
