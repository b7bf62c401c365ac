"""Graphs of steps with prompts and draft tokens on a CUDA device."""

import warnings

import pytest
import torch

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.cuda.parity_steps import (
    last_tokens,
    mixed_step,
    parity_sequences,
)
from stonechat_models.backends.transformers.cuda.static_buffers import mixed_shapes
from stonechat_models.backends.transformers.verify import TOLERANCE, logits_error, random_batch
from tests.gpu.test_cuda_engine import assert_near, build, prompts, tiny_pair
from tests.models.engines import Generated, add, greedy
from tests.models.tiny_models import tiny_model

LIMITS = {"max_num_seqs": 33, "max_batch_tokens": 320}


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def model(lines):
    """A model with and without sliding windows, so that a step has two kinds of kernels."""
    device = torch.device("cuda", 0)
    module = tiny_model("gemma2").to(device, torch.bfloat16)
    engine = build(module, device, dtype="bfloat16", progress=lines.append, **LIMITS)
    assert isinstance(engine.model, GraphedModel)
    if engine.model.info.attention_backend != "triton":
        pytest.skip("mixed steps are captured with the Triton kernels only")
    return engine.model


def test_every_shape_is_captured_and_checked(model, lines):
    assert {shape for shape in model._graphs if not shape.is_decode} == set(mixed_shapes(33, 320))
    assert lines[-1].endswith("and checked them")
    assert not any("without CUDA graphs" in line for line in lines)


def random_steps(info, device):
    """Steps of all sizes: decoding sequences, prompts with and without a prefix, drafts."""
    generator = torch.Generator().manual_seed(0)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    for _ in range(40):
        lengths = []
        for _ in range(draw(1, 34)):
            context = draw(1, 60)
            lengths.append((1 if draw(0, 3) else draw(1, context + 1), context))
        while sum(queries for queries, _ in lengths) > 320:
            lengths.pop()
        if all(queries == 1 for queries, _ in lengths):
            lengths[0] = (2, 2)
        yield random_batch(lengths, info.block_size, generator, vocab_size=info.vocab_size).to(
            device
        )


@torch.inference_mode()
def test_replays_give_the_numbers_of_their_steps(model, device):
    """Their bits too, unless a library chooses other kernels on the stream of the capture."""
    num_other_bits, shapes = 0, set()
    for batch in random_steps(model.info, device):
        shape = model._shape_of(batch)
        shapes.add(shape)
        actual = model.forward(batch).clone()
        view = model._buffers.view(shape, model.info.block_size)
        expected = model.model.forward(view)[: batch.num_seqs]
        assert float(logits_error(expected, actual).max()) < 0.1
        errors = logits_error(model.model.forward(batch), actual)
        assert float(errors.median()) < 0.1
        assert float(errors.max()) < 1.0
        num_other_bits += not torch.equal(actual, expected)
    assert len(shapes) > 4
    if num_other_bits:
        warnings.warn(f"{num_other_bits} of 40 steps have other bits in a graph", stacklevel=1)


@torch.inference_mode()
def test_mixed_and_decode_graphs_in_turn_do_not_disturb_each_other(model, device):
    """The graphs share memory. Each must be right after any other."""
    sequences = parity_sequences(model.info).to(device)

    def logits_of(step):
        model.model.forward(sequences)  # the cache is the same before each step
        return model.forward(step).clone()

    shapes = [shape for shape in model._graphs if not shape.is_decode]
    steps = [mixed_step(sequences, shape) for shape in shapes]
    steps += [last_tokens(sequences, n) for n in (1, 3, 33)]
    alone = [logits_of(step) for step in steps]
    for i in torch.randperm(len(steps), generator=torch.Generator().manual_seed(0)).tolist() * 2:
        assert torch.equal(logits_of(steps[i]), alone[i])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("overlap", [False, True], ids=["in order", "overlap"])
def test_answers_with_prompts_and_drafts_are_those_of_plain_transformers(family, overlap, device):
    """Requests come while others run. Then they come again, with the answers as predictions."""
    module, reference = tiny_pair(family, device, torch.bfloat16)
    lines: list[str] = []
    engine = build(
        module, device, dtype="bfloat16", progress=lines.append, overlap=overlap, **LIMITS
    )
    assert any(not shape.is_decode for shape in engine.model._graphs), lines
    eager_steps = []
    forward = engine.model.model.forward
    engine.model.model.forward = lambda batch: eager_steps.append(batch) or forward(batch)
    results = answers(engine, [()] * len(prompts()))
    assert_near(reference, results, TOLERANCE["logits"][torch.bfloat16])
    predictions = [tuple(r.token_ids) if i % 2 else () for i, r in enumerate(results)]
    results = answers(engine, predictions)
    assert_near(reference, results, TOLERANCE["logits"][torch.bfloat16])
    assert engine.stats().num_accepted_draft_tokens > 0
    assert not eager_steps, "every step replays a graph"


def answers(engine, predictions) -> list[Generated]:
    """The results for `prompts()`, each added once the one before has run for a step."""
    results = [Generated([], []) for _ in predictions]
    waiting = list(enumerate(prompts()))
    while waiting or engine.has_work:
        if waiting:
            i, prompt = waiting.pop(0)
            add(engine, str(i), prompt, greedy(12), prediction=predictions[i])
        for output in engine.step():
            result = results[int(output.request_id)]
            result.token_ids += output.token_ids
            result.logprobs += output.logprobs
    assert [len(result.token_ids) for result in results] == [12] * len(results)
    return results
