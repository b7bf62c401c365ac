"""Every type that transformers has is served as plain `transformers` computes it, or refused."""

from functools import cache

import pytest
import torch

from stonechat_models.backends.transformers.kinds import auto_class
from stonechat_models.backends.transformers.loading.footprint import EmptyModel
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.engine.engine import Engine
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.sampling.sampler import Sampler
from tests.models.engines import CPU, Generated, add, greedy, run
from tests.models.every_family import CAUSAL_TYPES, TYPES, hf_config
from tests.models.serving_ways import (
    COMPILED,
    COMPILED_TYPES,
    EMBEDDINGS_ONLY,
    NO_CACHE,
    OWN,
    OWN_WHOLE,
    RECURRENT,
    RECURRENT_WHOLE,
    WAYS,
    documented_ways,
    load_tiny,
    way_of,
)
from tests.models.tiny_models import VOCAB_SIZE
from tests.nightly import nightly

NUM_TOKENS = 8
MAX_MODEL_LEN = 48
PROMPT_LENS = (1, 3, 9, 17, 30, 5)
TOLERANCE = {"nemotron_h": 5e-3, "nemotron_h_omni": 5e-3, "zamba2": 5e-3}
"""Of log-probabilities. Mamba 2 computes a prompt in another order than single tokens."""
FOUND_AT_LOAD = (
    *("recurrent_gemma", "kosmos-2.5"),
    *("inkling2", "inkling2_text", "inkling_mm_model", "inkling_text"),
)
"""Types of which only the numerical checks at load show that the paged cache cannot serve them."""
DOCUMENTED = documented_ways()
WAY = {name: way.removeprefix(COMPILED) for name, way in DOCUMENTED.items()}
"""How PyTorch serves each type."""
ENCODERS = [t for t, way in DOCUMENTED.items() if way == EMBEDDINGS_ONLY]
REFUSED = {t: way for t, way in DOCUMENTED.items() if way.startswith("refused")}
SERVED = [t for t in TYPES if WAY[t] in WAYS]
SERVED_DAILY = [
    *("llama", "gemma3_text", "gpt_oss", "llama4_text", "gpt_neox"),
    *("qwen3_5", "qwen3_vl", "gemma4", "gemma3n_text"),
    *("nemotron_h", "lfm2", "falcon_h1", "mamba", "deepseek_v3", "deepseek_v32"),
    *("kimi_linear", "phimoe", "bloom", "gpt2", "openai-gpt", "minimax_m3_vl_text"),
]
"""Types that differ in how they compute attention, experts or positions."""


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in PROMPT_LENS]
    return [*texts, [*texts[4][:21], 7, 8]]  # starts like another


def whole_passes(module):
    """Return a function from token ids to log-probabilities; equal answers share one pass."""

    @cache
    @torch.inference_mode()
    def all_rows(*ids: int) -> torch.Tensor:
        logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return torch.log_softmax(logits.double(), dim=-1)

    return all_rows


def worst_difference(rows_of, prompt: list[int], result: Generated) -> float:
    """Compare with one whole pass over prompt and answer. The tokens must be the likeliest ones."""
    assert result.error is None
    assert len(result.token_ids) == NUM_TOKENS
    all_rows = rows_of(*prompt, *result.token_ids)
    for entry, row in zip(result.prompt_logprobs or (), all_rows, strict=False):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=6e-3)
        assert entry.top_logprobs == pytest.approx(row.topk(2).values.tolist(), abs=6e-3)
    rows = all_rows[len(prompt) - 1 : -1]
    got = torch.tensor([entry.logprob for entry in result.logprobs])
    expected = rows.gather(1, torch.tensor(result.token_ids).unsqueeze(1)).squeeze(1)
    missed = rows.amax(dim=1) - expected
    return float(torch.maximum((got - expected).abs(), missed).max())


@pytest.mark.parametrize(
    "model_type", [*SERVED_DAILY, *nightly(*(t for t in SERVED if t not in SERVED_DAILY))]
)
def test_a_served_type(model_type):
    """One engine: mixed batches, chunks, shared prefixes, several choices, preemption, and
    log-probabilities of prompts."""
    model = load_tiny(model_type, max_model_len=MAX_MODEL_LEN, max_batch_tokens=5)
    way = WAY[model_type]
    assert way_of(model) == way
    if model_type not in FOUND_AT_LOAD:  # a plan foresees it
        empty = EmptyModel.build(hf_config(model_type))
        empty.probe()
        assert empty.runs_plainly is (way in (OWN, OWN_WHOLE, NO_CACHE))
        assert empty.keeps_state is (way in (RECURRENT, RECURRENT_WHOLE))
    model.allocate_kv_cache(12, model.info.block_size)
    sampler = Sampler(model.info.vocab_size, CPU)
    engine = Engine(model, sampler, eos_token_ids=frozenset(), device=CPU, prefix_caching=True)
    for i, prompt in enumerate(prompts()):
        add(engine, f"a{i}", prompt, greedy(NUM_TOKENS, n=2 if i == 2 else 1))
    results = run(engine)
    for i, prompt in enumerate(prompts()):
        add(engine, f"b{i}", prompt, greedy(NUM_TOKENS, prompt_logprobs=(None, 2)[i % 2]))
    results |= (again := run(engine))
    for i, prompt in enumerate(prompts()):
        scores = again[f"b{i}", 0].prompt_logprobs
        assert len(scores or ()) == (len(prompt) - 1 if i % 2 else 0)
    model.module.set_attn_implementation("eager")
    rows_of = whole_passes(model.module)
    worst = max(
        worst_difference(rows_of, prompts()[int(name[1])], result)
        for (name, _), result in results.items()
    )
    assert worst < TOLERANCE.get(model_type, 1e-4)
    assert engine.stats().num_preemptions > 0
    shares = way not in (RECURRENT_WHOLE, OWN, OWN_WHOLE, NO_CACHE)
    assert any(result.num_cached_tokens for result in results.values()) is shares
    assert len({tuple(result.token_ids) for result in results.values()}) > 2


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_type_is_refused_before_it_is_loaded(model_type):
    config = parse_config({"model_type": model_type}, "config.json")
    with pytest.raises(UnsupportedModelError) as load_error:
        auto_class(config)
    assert REFUSED[model_type].replace("…", model_type) == f"refused: {load_error.value}"
    with pytest.raises(UnsupportedModelError) as plan_error:
        EmptyModel.build(config)
    assert str(plan_error.value) == str(load_error.value)


def test_a_type_with_code_in_its_folder_is_refused_with_the_flag_that_runs_it():
    config = parse_config({"model_type": "of_its_own", "auto_map": {}}, "config.json")
    with pytest.raises(
        UnsupportedModelError, match="of_its_own; --trust-remote-code runs the code"
    ):
        auto_class(config)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_completes_no_text(model_type):
    with pytest.raises(UnsupportedModelError, match=f"{model_type} are encoders: they make emb"):
        auto_class(hf_config(model_type))


def test_every_type_is_documented():
    assert set(DOCUMENTED) >= set(TYPES)
    compiled = {name for name, way in DOCUMENTED.items() if way.startswith(COMPILED)}
    assert compiled == COMPILED_TYPES & set(TYPES)


def test_most_decoders_are_served():
    decoders = [t for t in CAUSAL_TYPES if t in SERVED]
    assert len(decoders) >= 145
