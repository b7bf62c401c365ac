"""Tiny models that see, large enough for the compiled code, and how its answers are checked."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.models import audio_models, vision_families, vision_models
from tests.models.media.audio_prompts import AudioModel
from tests.models.media.prompts import Prompt, VisionModel
from tests.models.test_model_file import ROOT, child_environment

NUM_OUTPUT = 5
ROUNDING = 0.05
"""Of log-probabilities: attention rounds to bfloat16."""
HEADS = {"head_dim": 32}
ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1}
AXES: dict[str, Any] = vision_families.sections(6, 5, 5, mrope_interleaved=True)
TEXT_PARTS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {**ONE_HEAD, **vision_families.sections(4, 6, 6)},
    "qwen2_5_vl": {**ONE_HEAD, **vision_families.sections(4, 6, 6)},
    "qwen3_vl": {**HEADS, **AXES},
    "lfm2_vl": {
        **{"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
        **{"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"hidden_size": 64},
    },
    "qwen3_vl_moe": {**HEADS, **AXES, "moe_intermediate_size": 32},
    "qwen3_5": {
        **HEADS,
        **vision_families.sections(6, 5, 5, partial_rotary_factor=1.0),
        **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    },
    "qwen3_5_moe": {
        **HEADS,
        **vision_families.sections(6, 5, 5, partial_rotary_factor=1.0),
        **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
        **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    },
    "minicpmv4_6": {**HEADS, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
    **dict.fromkeys(("mistral3", "smolvlm", "idefics3", "internvl"), HEADS),
    "gemma3": {**HEADS, "query_pre_attn_scalar": 32},
    **dict.fromkeys(("llava", "llava_next", "llava_onevision"), HEADS),
}
"""What makes the language models of the tiny families large enough for the compiled code."""

TEXT_ONLY = """
import sys
from stonechat_models.config import EngineConfig
from stonechat_models.runtime.build import build_engine
from stonechat_models.types import GenerateRequest, SamplingParams

config = EngineConfig(model=sys.argv[1], device="cpu", threads=1, backend="native")
engine, tokenizer = build_engine(config, lambda line: None)
assert engine.model.info.images is not None, engine.model.info.image_refusal
params = SamplingParams(max_tokens=3)
engine.add(GenerateRequest(request_id="a", prompt_token_ids=[5], params=params))
while engine.has_work:
    engine.step()
assert "transformers" not in sys.modules
"""
"""Answers a text with the model that the command line names, and imports no transformers."""


Model = TypeVar("Model", bound=VisionModel)


def check_text_alone(path: Path) -> None:
    """A text is answered by a model that sees, without an import of transformers."""
    result = subprocess.run(
        [sys.executable, "-c", TEXT_ONLY, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=child_environment(),
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def make_model(
    folder: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[Path, str], Model] = VisionModel,
) -> Model:
    family = vision_models.ALL_FAMILIES[name]
    changed = replace(
        family,
        model_type=family.model_type or name,
        text={**family.text, "intermediate_size": 64, **TEXT_PARTS[name]},
    )
    monkeypatch.setitem(vision_models.FAMILIES, f"compiled {name}", changed)
    return kind(folder, f"compiled {name}")


def make_audio_model(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> AudioModel:
    """Return a model that hears, large enough for the compiled code."""
    family = audio_models.FAMILIES[name]
    text = {**family.text, "intermediate_size": 64, "head_dim": 32}
    if name in ("audioflamingo3", "musicflamingo", "qwen2_audio"):  # its heads divide its width
        text |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    monkeypatch.setitem(audio_models.FAMILIES, name, replace(family, text=text))
    return AudioModel(folder, name)


def check(model: VisionModel | AudioModel, result: Any, prompt: Prompt) -> None:
    """The answers are equal, up to a token whose two best choices are as good but for rounding."""
    token_ids, logprobs = model.reference(prompt, NUM_OUTPUT)
    assert result.error is None
    assert len(result.token_ids) == NUM_OUTPUT
    for entry, token_id, logprob in zip(result.logprobs, token_ids, logprobs, strict=True):
        tops = dict(zip(entry.top_ids, entry.top_logprobs, strict=True))
        assert tops[token_id] == pytest.approx(logprob, abs=ROUNDING)
        if entry.token_id != token_id:
            assert entry.logprob - tops[token_id] < ROUNDING
            return
