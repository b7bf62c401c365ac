"""LongRoPE: one set of factors for all positions, chosen at load by the context length."""

import copy
import dataclasses
import json

import pytest
import torch
import transformers

from stonechat_models.backends.transformers.loading.load import load_transformers_model
from stonechat_models.backends.transformers.longrope import long_config
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.checkpoint.hf_config import read_config
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.runtime.build import build_engine
from tests.models.engines import CPU, generate_all, greedy, make_engine, reference_greedy
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.models.tiny_tokenizers import ascii_backend
from tests.nightly import nightly

ORIGINAL = 16
SHORT, LONG = [1.0, 1.1, 1.3, 1.6], [1.0, 2.5, 6.0, 11.0]
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": ORIGINAL,
}
NESTED = {
    "rope_parameters": {"full_attention": ROPE, "sliding_attention": {"rope_type": "default"}}
}
MODELS = {
    "phi3": ("phi3", {"rope_parameters": ROPE, "original_max_position_embeddings": ORIGINAL}),
    "llama": ("llama", {"rope_parameters": {**ROPE, "factor": 4.0}}),
    "phimoe": (
        "phimoe",
        {
            "sliding_window": None,
            "rope_parameters": {**ROPE, "short_mscale": 1.05, "long_mscale": 1.3},
        },
    ),
    "gemma3": ("gemma3", {**NESTED, "head_dim": 8}),
}
NUM_TOKENS = 12
PROMPT_LENS = [1, 3, 9, 15, 17, 30, 5]


def prompts():
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, VOCAB_SIZE, (n,), generator=generator) for n in PROMPT_LENS]
    return [text.tolist() for text in texts]


def with_long_factors(module):
    """The same weights, in a module that only knows the long factors."""
    config = copy.deepcopy(module.config)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    rope["short_factor"] = LONG
    if "long_mscale" in rope:
        rope["short_mscale"] = rope["long_mscale"]
    long = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    long.load_state_dict(module.state_dict())
    return long.eval()


def files_of(module, folder):
    module.save_pretrained(folder)
    weights = tuple(sorted(folder.glob("*.safetensors")))
    return ModelFiles("tiny", folder, read_config(folder / "config.json"), None, weights)


def load(files, max_model_len):
    config = EngineConfig(model="tiny", max_model_len=max_model_len, threads=1)
    return load_transformers_model(files, config, CPU, lambda line: None)


def check(results, references):
    for result, (token_ids, logprobs) in zip(results, references, strict=True):
        assert result.token_ids == token_ids
        for row, entry in zip(logprobs, result.logprobs, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)


@pytest.fixture(scope="module", params=["phi3", "gemma3", *nightly("llama", "phimoe")])
def case(request, tmp_path_factory):
    """A module, its files, and the module that is right for long contexts with its answers."""
    family, changes = MODELS[request.param]
    if family == "gemma3" and transformers.__version__.startswith("5.17."):
        pytest.skip("its own code fails in this transformers")
    module = tiny_model(family, **copy.deepcopy(changes))
    long = with_long_factors(module)
    references = [reference_greedy(long, prompt, NUM_TOKENS) for prompt in prompts()]
    return module, files_of(module, tmp_path_factory.mktemp("model")), references


def test_answers_beyond_the_original_length(case):
    module, files, references = case
    model = load(files, max_model_len=64)
    assert type(model) is TransformersModel
    for limits in ({}, {"max_batch_tokens": 5, "prefix_caching": False}, {"num_blocks": 14}):
        engine = make_engine(model.module, max_model_len=48, **limits)
        check(generate_all(engine, prompts(), greedy(NUM_TOKENS)), references)
        assert bool(engine.stats().num_preemptions) is ("num_blocks" in limits)
        results = generate_all(engine, prompts(), greedy(NUM_TOKENS))
        check(results, references)
        if not limits and module.config.model_type != "phimoe":  # whose engine has its own cache
            assert max(result.num_cached_tokens for result in results) == 28


def test_the_references_are_transformers_own_for_long_prompts(case):
    """It chooses the long factors there itself, except for the frequencies of PhiMoE."""
    module, _, references = case
    for prompt, (token_ids, logprobs) in zip(prompts(), references, strict=True):
        if len(prompt) > ORIGINAL and module.config.model_type != "phimoe":
            own_ids, own_logprobs = reference_greedy(module, prompt, NUM_TOKENS)
            assert own_ids == token_ids
            torch.testing.assert_close(own_logprobs, logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_model_len", [None, ORIGINAL])
def test_short_contexts_have_the_short_factors(case, max_model_len):
    module, files, references = case
    model = load(files, max_model_len)
    short_prompts = [prompt for prompt in prompts() if len(prompt) < 10]
    own = [reference_greedy(module, prompt, 6) for prompt in short_prompts]
    engine = make_engine(model.module, max_model_len=ORIGINAL)
    check(generate_all(engine, short_prompts, greedy(6)), own)
    forced = [references[i] for i, n in enumerate(PROMPT_LENS) if n < 10]
    assert any((a[1][0] - b[1][0]).abs().max() > 1e-3 for a, b in zip(own, forced, strict=True)), (
        "the factors make no difference"
    )


@pytest.mark.parametrize(("requested", "length"), [(None, 16), (16, 16), (17, 17), (64, 64)])
def test_the_engine_says_when_it_uses_the_long_factors(requested, length, tmp_path):
    family, changes = MODELS["phi3"]
    module = tiny_model(family, vocab_size=300, max_position_embeddings=64, **changes)
    files_of(module, tmp_path)
    ascii_backend().save(str(tmp_path / "tokenizer.json"))
    config = EngineConfig(
        model=str(tmp_path), device="cpu", max_model_len=requested, kv_cache_bytes=1 << 20
    )
    lines = []
    engine, _ = build_engine(config, lines.append)
    assert engine.model.info.max_model_len == length
    assert any("factors for long texts" in line for line in lines) is (length > ORIGINAL)
    with pytest.raises(UnsupportedModelError, match="limit of 64"):
        build_engine(dataclasses.replace(config, max_model_len=65), lines.append)


@pytest.mark.filterwarnings("ignore:.*rope_scaling.*:FutureWarning")
def test_the_configuration_of_a_models_own_code(tmp_path):
    """It reads its factors from `rope_scaling`, and leaves its dtype open."""
    (tmp_path / "own.py").write_text(
        "from transformers import PretrainedConfig\n\n\n"
        "class OwnConfig(PretrainedConfig):\n"
        "    def __init__(self, rope_scaling=None, **rest):\n"
        "        super().__init__(**rest)\n"
        "        self.rope_scaling = rope_scaling\n"
    )
    values = {"auto_map": {"AutoConfig": "own.OwnConfig"}, "max_position_embeddings": 64}
    values |= {"rope_scaling": ROPE, "dtype": "auto"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = EngineConfig(model="own", trust_remote_code=True, max_model_len=64)
    changed = long_config(tmp_path, read_config(tmp_path / "config.json"), config)
    assert changed.rope_scaling == {**ROPE, "short_factor": LONG}
