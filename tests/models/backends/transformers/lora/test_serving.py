"""Sequences of several adapters and of the base in one step, against plain merged modules."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from stonechat_models.backends.transformers import adapter_rows
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.lora.linear import LoraLinear, Stack
from stonechat_models.model_info import EmbeddingInfo
from stonechat_models.types import EmbeddingParams, GenerateRequest
from tests.models.backends.transformers.cuda.test_graphs import RerunCapturer
from tests.models.engines import (
    CPU,
    add,
    deviations,
    greedy,
    make_engine,
    reference_prompt,
    run,
)
from tests.models.tiny_adapters import projections
from tests.models.tiny_loras import TinyLora, tiny_lora
from tests.models.tiny_models import tiny_model

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
ALL = [*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
PROMPTS = [[5, 9, 3, 17, 40], [5, 9, 3, 17, 41, 8, 77, 15, 2, 30, 31], [60, 61, 62]]


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def loras(llama, tmp_path_factory) -> list[TinyLora]:
    """Adapters of other layers, ranks and scales."""
    folder = tmp_path_factory.mktemp("loras")
    return [
        tiny_lora(folder / "attention", llama, projections(2, ATTENTION), seed=1),
        tiny_lora(
            folder / "all",
            llama,
            [*projections(2, ALL), "lm_head"],
            rank=9,
            use_rslora=True,
            rank_pattern={"down_proj": 9},
            scale=2.0,
            seed=2,
        ),
        tiny_lora(folder / "one", llama, ["model.layers.1.mlp.up_proj"], rank=1, scale=6, seed=3),
    ]


def engine_of(module, loras, **settings):
    return make_engine(copy.deepcopy(module), adapters=[x.adapter for x in loras], **settings)


def generate(engine, requests, num_tokens=8, **params):
    """Return the results of requests (prompt, adapter) that run together."""
    for i, (prompt, adapter) in enumerate(requests):
        add(engine, str(i), prompt, greedy(num_tokens, **params), adapter=adapter)
    return run(engine)


@pytest.mark.parametrize(
    ("settings", "max_joint_rows"), [({}, 64), ({"overlap": True, "max_batch_tokens": 7}, 0)]
)
def test_each_sequence_gets_its_adapter(
    llama, loras, settings, max_joint_rows, monkeypatch
) -> None:
    """Chunks of prompts, and rows of one adapter that do not lie together, are among them."""
    monkeypatch.setattr(adapter_rows, "MAX_JOINT_ROWS", max_joint_rows)
    references = {"": llama} | {lora.name: lora.merged for lora in loras}
    requests = [(prompt, name) for prompt in PROMPTS for name in references]
    engine = engine_of(llama, loras, **settings)
    results = generate(engine, requests)
    for i, (prompt, name) in enumerate(requests):
        together = results[str(i), 0]
        assert together.error is None
        assert deviations(references[name], prompt, together).max() < 1e-4
        assert generate(engine, [(prompt, name)])["0", 0].token_ids == together.token_ids
    answers = {tuple(results[str(i), 0].token_ids) for i in range(len(references))}
    assert len(answers) == len(references), "the adapters change the answers"


def test_no_cached_keys_are_shared_between_adapters(llama, loras) -> None:
    engine = engine_of(llama, loras)
    prompt = [*range(20, 41)]
    for name in ("", "attention", "all"):
        assert generate(engine, [(prompt, name)])["0", 0].num_cached_tokens == 0
        again = generate(engine, [(prompt, name)])["0", 0]
        assert again.num_cached_tokens == 20
        reference = next((x.merged for x in loras if x.name == name), llama)
        assert deviations(reference, prompt, again).max() < 1e-4


def test_choices_and_preempted_sequences_keep_their_adapter(llama, loras) -> None:
    engine = engine_of(llama, loras, num_blocks=14, prefix_caching=False)
    names = ["attention", "all", ""]
    for name, prompt in zip(names, PROMPTS, strict=True):
        add(engine, name, prompt, greedy(16, n=2), adapter=name)
    results = run(engine)
    assert engine.stats().num_preemptions > 0
    for name, prompt in zip(names, PROMPTS, strict=True):
        reference = next((x.merged for x in loras if x.name == name), llama)
        for choice in range(2):
            assert deviations(reference, prompt, results[name, choice]).max() < 1e-4


@pytest.mark.parametrize("settings", [{"prompt_lookup": "on"}, {"draft_module": True}])
def test_draft_tokens_do_not_change_answers(llama, loras, settings) -> None:
    """The draft model, which is the base here, knows no adapter: some of its tokens are wrong."""
    if "draft_module" in settings:
        settings = {"draft_module": copy.deepcopy(llama)}
    prompt = [7, 8, 9, 10, 7, 8, 9, 10, 7, 8]
    requests = [(prompt, name) for name in ("", "attention", "one")]
    expected = generate(engine_of(llama, loras), requests, num_tokens=24)
    engine = engine_of(llama, loras, **settings)
    actual = generate(engine, requests, num_tokens=24)
    assert engine.stats().num_accepted_draft_tokens > 0
    for key, result in expected.items():
        assert actual[key].token_ids == result.token_ids


def test_logprobs_of_a_prompt_are_those_of_its_adapter(llama, loras) -> None:
    """The head, which has an adapter too, gets several rows of some sequences and one of others."""
    engine = engine_of(llama, loras)
    requests = [(PROMPTS[0], ""), (PROMPTS[1], "all"), (PROMPTS[2], "one")]
    results = generate(engine, requests, num_tokens=2, prompt_logprobs=0)
    for i, (prompt, name) in enumerate(requests):
        reference = next((x.merged for x in loras if x.name == name), llama)
        rows = reference_prompt(reference, prompt)
        entries = results[str(i), 0].prompt_logprobs
        for row, token_id, entry in zip(rows, prompt[1:], entries, strict=True):
            assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-4)


def test_a_step_without_adapters_costs_nothing_more(llama, loras, monkeypatch) -> None:
    """Its layers are those of a module without adapters, but for the head."""
    engine = engine_of(llama, loras)
    num_layers = len({name for lora in loras for name in lora.adapter.layers})
    products = []
    monkeypatch.setattr(Stack, "add_to", lambda *args: products.append(args))
    generate(engine, [(PROMPTS[0], "one")], num_tokens=1)
    products.clear()
    generate(engine, [(prompt, "") for prompt in PROMPTS])
    assert not products
    assert sum(isinstance(part, LoraLinear) for part in engine.model.module.modules()) == 1
    generate(engine, [(PROMPTS[0], "one"), (PROMPTS[1], "")], num_tokens=1)
    assert len(products) == num_layers, "both prompts fit into a step"


def test_steps_with_adapters_replay_no_graph(llama, loras) -> None:
    engine = engine_of(llama, loras)
    expected = generate(engine_of(llama, loras), [(p, "attention") for p in PROMPTS])
    graphed = GraphedModel(engine.model, CPU)
    graphed.capture(RerunCapturer(), lambda line: None)
    engine.model = graphed
    replayed = []
    graphed._graphs = {
        shape: lambda shape=shape, replay=replay: replayed.append(shape) or replay()
        for shape, replay in graphed._graphs.items()
    }
    actual = generate(engine, [(p, "attention") for p in PROMPTS])
    assert not replayed
    assert [r.token_ids for r in actual.values()] == [r.token_ids for r in expected.values()]
    results = generate(engine, [(p, "") for p in PROMPTS])
    assert replayed
    for i, prompt in enumerate(PROMPTS):
        assert deviations(llama, prompt, results[str(i), 0]).max() < 1e-4


def test_embeddings_are_those_of_the_adapter(llama, loras) -> None:
    """They are the final hidden states, before the head and what an adapter adds to it."""
    engine = engine_of(llama, loras)
    made = EmbeddingInfo(size=32, pooling="lasttoken", is_normalized=False)
    engine.model.info = replace(engine.model.info, embedding=made)
    names = ("", "all", "attention")
    for name in names:
        request = GenerateRequest(
            request_id=name or "base",
            prompt_token_ids=PROMPTS[0],
            params=greedy(1),
            embedding=EmbeddingParams(),
            adapter=name,
        )
        engine.add(request)
    vectors = {output.request_id: output.embedding for output in engine.step()}
    for name in names:
        reference = next((x.merged for x in loras if x.name == name), llama)
        with torch.inference_mode():
            hidden = reference.model(torch.tensor([PROMPTS[0]])).last_hidden_state[0, -1]
        actual = np.frombuffer(vectors[name or "base"], dtype="<f4")
        np.testing.assert_allclose(actual, hidden.numpy(), atol=1e-4)
