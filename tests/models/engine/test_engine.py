"""The engine's step: ends, aborts, seeds, choices and faults, on a tiny model."""

from functools import partial

import pytest
import torch

from stonechat_models.types import FinishReason, SamplingParams
from tests.models import engines
from tests.models.engines import add, generate_all, greedy, reference_greedy, run
from tests.models.tiny_models import tiny_model

PROMPTS = [[5, 6, 7], [9] * 13, [100, 3, 50, 60, 70, 80]]


@pytest.fixture(scope="module")
def module():
    return tiny_model("llama", num_hidden_layers=1)


@pytest.fixture(params=[False, True], ids=["in-order", "overlap"])
def make_engine(request):
    return partial(engines.make_engine, overlap=request.param)


def sampled(**changes):
    return SamplingParams(**{"max_tokens": 10, "seed": 11, "top_logprobs": 0, **changes})


def test_length_ends_a_sequence(make_engine, module):
    (result,) = generate_all(make_engine(module), PROMPTS[:1], greedy(4))
    assert len(result.token_ids) == 4
    assert result.finish_reason is FinishReason.LENGTH


def test_context_ends_a_sequence(make_engine, module):
    (result,) = generate_all(make_engine(module, max_model_len=10), PROMPTS[:1], greedy(50))
    assert len(result.token_ids) == 7
    assert result.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("kind", ["eos", "stop_token_ids"])
def test_a_stop_token_ends_a_sequence_and_counts(make_engine, module, kind):
    expected, _ = reference_greedy(module, PROMPTS[0], 8)
    stop = expected[3]
    cut = expected.index(stop) + 1
    if kind == "eos":
        engine, params = make_engine(module, eos=frozenset({stop})), greedy(8)
    else:
        engine, params = make_engine(module), greedy(8, stop_token_ids=(stop,))
    (result,) = generate_all(engine, PROMPTS[:1], params)
    assert result.token_ids == expected[:cut]
    assert result.finish_reason is FinishReason.STOP


def test_ignore_eos_generates_past_eos(make_engine, module):
    expected, _ = reference_greedy(module, PROMPTS[0], 8)
    engine = make_engine(module, eos=frozenset(expected))
    (result,) = generate_all(engine, PROMPTS[:1], greedy(8, ignore_eos=True))
    assert result.token_ids == expected


def test_min_tokens_suppresses_end_tokens(make_engine, module):
    expected, _ = reference_greedy(module, PROMPTS[0], 8)
    engine = make_engine(module, eos=frozenset({expected[0]}))
    (result,) = generate_all(engine, PROMPTS[:1], greedy(8, min_tokens=5))
    assert expected[0] not in result.token_ids[:5]
    assert len(result.token_ids) >= 5


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_after_a_cache_hit(make_engine, module):
    alone = generate_all(make_engine(module), PROMPTS[1:2], sampled())[0].token_ids
    engine = make_engine(module)
    for i in range(6):
        add(engine, f"other{i}", [7 + i, 8], sampled(seed=i, max_tokens=20))
    add(engine, "mine", PROMPTS[1], sampled())
    assert run(engine)["mine", 0].token_ids == alone
    add(engine, "again", PROMPTS[1], sampled())
    again = run(engine)["again", 0]
    assert again.num_cached_tokens == 12
    assert again.token_ids == alone


def test_a_seed_survives_preemption(make_engine, module):
    alone = [generate_all(make_engine(module), [p], sampled())[0].token_ids for p in PROMPTS]
    engine = make_engine(module, num_blocks=7, max_model_len=28, prefix_caching=False)
    results = generate_all(engine, PROMPTS, sampled())
    assert engine.stats().num_preemptions > 0
    assert [r.token_ids for r in results] == alone


def test_choices_differ_and_the_first_equals_a_request_alone(make_engine, module):
    engine = make_engine(module)
    add(engine, "r", PROMPTS[0], sampled(n=4))
    results = run(engine)
    choices = [tuple(results["r", i].token_ids) for i in range(4)]
    assert len(set(choices)) == 4
    assert (
        list(choices[0]) == generate_all(make_engine(module), PROMPTS[:1], sampled())[0].token_ids
    )


def test_requests_without_a_seed_differ(make_engine, module):
    params = sampled(seed=None, max_tokens=20)
    first, second = generate_all(make_engine(module), [PROMPTS[0], PROMPTS[0]], params)
    assert first.token_ids != second.token_ids


def test_abort_frees_everything(make_engine, module):
    engine = make_engine(module)
    add(engine, "gone", PROMPTS[1], sampled(n=3, max_tokens=100))
    add(engine, "kept", PROMPTS[0], sampled(max_tokens=6))
    for _ in range(3):
        engine.step()
    engine.abort("gone", index=1)
    engine.step()
    engine.abort("gone")
    engine.abort("never existed")
    engine.scheduler.check_integrity()
    results = run(engine)
    assert set(results) == {("kept", 0)}
    assert engine.stats().num_used_blocks == 0


def test_counters(make_engine, module):
    engine = make_engine(module)
    generate_all(engine, PROMPTS, greedy(5))
    stats = engine.stats()
    assert stats.num_prompt_tokens == sum(map(len, PROMPTS))
    assert stats.num_generated_tokens == 15
    assert stats.num_cache_queried_tokens == sum(map(len, PROMPTS))


class FailingModel:
    """Wraps a model, and fails whenever the poisoned token is computed."""

    def __init__(self, model, poison, fail):
        self._model, self._poison, self._fail = model, poison, fail

    def __getattr__(self, name):
        return getattr(self._model, name)

    def forward(self, batch):
        logits = self._model.forward(batch)
        if (batch.token_ids == self._poison).any():
            return self._fail(batch, logits)
        return logits


def raise_error(batch, logits):
    raise RuntimeError("a kernel broke")


def nan_row(batch, logits):
    poisoned = batch.token_ids[batch.logits_index] == 200
    return torch.where(poisoned.unsqueeze(1), float("nan"), logits)


@pytest.mark.parametrize("fail", [raise_error, nan_row])
def test_a_fault_ends_only_the_request_that_causes_it(make_engine, module, fail):
    expected = generate_all(make_engine(module), PROMPTS, sampled(logit_bias={200: -100}))
    engine = make_engine(module)
    engine.model = FailingModel(engine.model, 200, fail)
    for i, prompt in enumerate(PROMPTS):
        add(engine, str(i), prompt, sampled(logit_bias={200: -100}))
    add(engine, "bad", [4, 200], sampled())
    results = run(engine)
    assert results["bad", 0].finish_reason is FinishReason.ERROR
    assert results["bad", 0].error
    for i, result in enumerate(expected):
        assert results[str(i), 0].token_ids == result.token_ids
    assert not engine.is_broken
    assert engine.stats().num_used_blocks == 0


def test_an_engine_whose_every_step_fails_is_broken(make_engine, module):
    engine = make_engine(module)
    engine.model = FailingModel(engine.model, 200, raise_error)
    for i in range(20):
        assert not engine.is_broken or i >= 8
        add(engine, str(i), [200], sampled())
        run(engine)
    assert engine.is_broken


def test_an_engine_whose_tokens_can_never_be_read_is_broken(make_engine, module):
    """On a device that runs beside the host, a fault may only show when the tokens are read."""

    class Unreadable:
        def __init__(self, sampling):
            self.tokens = sampling.tokens

        def read(self):
            raise RuntimeError("the device is gone")

    engine = make_engine(module)
    launch = engine.sampler.launch
    engine.sampler.launch = lambda logits, states: Unreadable(launch(logits, states))
    for i in range(8):
        assert not engine.is_broken
        add(engine, str(i), PROMPTS[0], sampled())
        assert run(engine)[str(i), 0].error
    assert engine.is_broken


def test_rows_that_cannot_be_sampled_never_break_the_engine(make_engine, module):
    engine = make_engine(module)
    engine.model = FailingModel(engine.model, 200, nan_row)
    for i in range(20):
        add(engine, str(i), [200], sampled())
        assert run(engine)[str(i), 0].error
    assert not engine.is_broken


class OnlyEven:
    """A constraint that allows only even tokens, and ends after three of them."""

    def __init__(self):
        self.count = 0

    def fill_bitmask(self, row):
        row.fill(0x55555555)
        return True

    def accept(self, token_id):
        assert token_id % 2 == 0
        self.count += 1

    @property
    def is_finished(self):
        return self.count == 3


def test_a_constraint_masks_its_row_and_ends_its_sequence(make_engine, module):
    engine = make_engine(module)
    add(engine, "masked", PROMPTS[0], sampled(n=2, temperature=2.0), [OnlyEven(), OnlyEven()])
    add(engine, "free", PROMPTS[0], sampled(temperature=2.0, max_tokens=30))
    results = run(engine)
    for index in range(2):
        masked = results["masked", index]
        assert len(masked.token_ids) == 3
        assert all(token_id % 2 == 0 for token_id in masked.token_ids)
        assert masked.finish_reason is FinishReason.STOP
    assert any(token_id % 2 for token_id in results["free", 0].token_ids)


def test_a_constraint_survives_preemption(make_engine, module):
    engine = make_engine(module, num_blocks=7, max_model_len=28, prefix_caching=False)
    constraints = [OnlyEven() for _ in PROMPTS]
    for constraint in constraints:
        constraint.count = -9  # ends after twelve tokens
    for i, prompt in enumerate(PROMPTS):
        add(engine, str(i), prompt, sampled(max_tokens=30), [constraints[i]])
    results = run(engine)
    assert engine.stats().num_preemptions > 0
    for i in range(len(PROMPTS)):
        assert len(results[str(i), 0].token_ids) == 12
        assert all(token_id % 2 == 0 for token_id in results[str(i), 0].token_ids)
        assert results[str(i), 0].finish_reason is FinishReason.STOP


def test_caches_of_ended_sequences_are_freed(make_engine):
    """A model with caches of its own holds those of running sequences only."""
    engine = make_engine(tiny_model("bloom"))
    generate_all(engine, PROMPTS, greedy(3))
    assert engine.model._caches == {}
    add(engine, "r", PROMPTS[0], greedy(8))
    engine.step()
    engine.step()
    assert len(engine.model._caches) == 1
    engine.abort("r")
    assert engine.model._caches == {}
