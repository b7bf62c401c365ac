"""The engine of an embedding model: batches by length, aborts and faults, on a scripted model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stonechat_models.backends.base import Text
from stonechat_models.engine.embedding_engine import EmbeddingEngine
from stonechat_models.model_info import EmbeddingInfo
from stonechat_models.types import EmbeddingParams, FinishReason, GenerateRequest, SamplingParams
from tests.models.engines import model_info


class ScriptedModel:
    """A text's vector is (its first token, its length, 2). Token 13 breaks the step, and the vector
    of token 14 is not finite."""

    def __init__(self, **info):
        made = EmbeddingInfo(size=3, pooling="mean", is_normalized=False)
        limits = {"max_batch_tokens": 24, "max_num_seqs": 4, **info}
        self.info = replace(model_info(**limits), generates=False, embedding=made)
        self.batches: list[list[int]] = []

    def embed(self, texts: list[Text]) -> torch.Tensor:
        self.batches.append([len(text.token_ids) for text in texts])
        if any(13 in text.token_ids for text in texts):
            raise RuntimeError("the step fails")
        firsts = [float("inf") if t.token_ids[0] == 14 else t.token_ids[0] for t in texts]
        return torch.tensor(
            [[first, len(t.token_ids), 2.0] for first, t in zip(firsts, texts, strict=True)]
        )


def request(name, length, *, token=1, priority=0, arrival=0.0, **params):
    return GenerateRequest(
        request_id=name,
        prompt_token_ids=[token] * length,
        params=SamplingParams(max_tokens=0),
        priority=priority,
        arrival_time=arrival,
        embedding=EmbeddingParams(**params),
    )


def run(engine):
    outputs = {}
    for _ in range(100):
        if not engine.has_work:
            return outputs
        outputs |= {output.request_id: output for output in engine.step()}
    raise AssertionError("the engine does not end")


def vector(output):
    return np.frombuffer(output.embedding, dtype="<f4").tolist()


def test_each_request_gets_its_vector():
    engine = EmbeddingEngine(ScriptedModel())
    for i, length in enumerate((3, 1, 7, 2, 5, 6)):
        engine.add(request(str(i), length, token=20 + i))
    outputs = run(engine)
    assert [vector(outputs[str(i)]) for i in range(6)] == [
        [20 + i, length, 2] for i, length in enumerate((3, 1, 7, 2, 5, 6))
    ]
    assert all(output.finish_reason is FinishReason.STOP for output in outputs.values())
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_waiting) == (24, 0)
    assert stats.num_steps == len(engine.model.batches)


def test_texts_of_similar_length_share_a_batch():
    engine = EmbeddingEngine(ScriptedModel(max_batch_tokens=64))
    for i, length in enumerate((10, 2, 9, 2, 11, 2)):
        engine.add(request(str(i), length, arrival=float(i)))
    run(engine)
    assert [sorted(batch) for batch in engine.model.batches] == [[9, 10, 11], [2, 2, 2]]


def test_a_batch_keeps_within_its_limits():
    model = ScriptedModel()
    engine = EmbeddingEngine(model)
    for i in range(9):
        engine.add(request(str(i), 8, arrival=float(i)))
    engine.add(request("long", 40, arrival=-1.0))
    engine.add(request("short", 1, arrival=9.0))
    run(engine)
    assert model.batches == [[40], [8, 8, 8], [8, 8, 8], [8, 8, 8], [1]]
    engine = EmbeddingEngine(many := ScriptedModel())
    for i in range(6):
        engine.add(request(str(i), 1))
    run(engine)
    assert many.batches == [[1] * 4, [1] * 2]


def test_lower_priorities_and_earlier_arrivals_come_first():
    engine = EmbeddingEngine(ScriptedModel(max_num_seqs=1))
    engine.add(request("third", 1, arrival=2.0))
    engine.add(request("second", 1, arrival=1.0))
    engine.add(request("first", 1, priority=-1, arrival=3.0))
    order = [engine.step()[0].request_id for _ in range(3)]
    assert order == ["first", "second", "third"]


def test_an_aborted_request_is_not_computed():
    engine = EmbeddingEngine(ScriptedModel())
    engine.add(request("a", 2))
    engine.add(request("b", 3))
    engine.abort("a")
    engine.abort("unknown")
    assert set(run(engine)) == {"b"}
    assert engine.model.batches == [[3]]
    assert engine.step() == []


def test_a_text_that_breaks_the_step_fails_alone():
    engine = EmbeddingEngine(ScriptedModel())
    for name, token in (("a", 1), ("bad", 13), ("c", 3)):
        engine.add(request(name, 2, token=token))
    outputs = run(engine)
    assert outputs["bad"].finish_reason is FinishReason.ERROR
    assert outputs["bad"].error == "the model failed on this request"
    assert (vector(outputs["a"])[0], vector(outputs["c"])[0]) == (1, 3)
    assert engine.stats().num_failed_steps > 0
    assert not engine.is_broken


def test_a_model_that_always_fails_is_broken():
    engine = EmbeddingEngine(ScriptedModel())
    for i in range(7):
        engine.add(request(str(i), 2, token=13))
        run(engine)
    assert not engine.is_broken
    engine.add(request("last", 2, token=13))
    run(engine)
    assert engine.is_broken


def test_vectors_that_are_not_finite_fail_alone_and_break_nothing():
    engine = EmbeddingEngine(ScriptedModel())
    for i in range(12):
        for name, token in ((f"bad{i}", 14), (f"good{i}", 3)):
            engine.add(request(name, 2, token=token, normalize=i % 2 == 0))
        outputs = run(engine)
        assert outputs[f"bad{i}"].error == "the model computed a number that is not finite"
        assert outputs[f"bad{i}"].finish_reason is FinishReason.ERROR
        assert np.isfinite(vector(outputs[f"good{i}"])).all()
    for i in range(12):
        engine.add(request(f"alone{i}", 2, token=14))
        run(engine)
    assert engine.model.batches == [[2, 2]] * 12 + [[2]] * 12
    assert engine.stats().num_failed_steps == 0
    assert not engine.is_broken


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [3.0, 4.0, 2.0]),
        ({"normalize": True}, [3 / 29**0.5, 4 / 29**0.5, 2 / 29**0.5]),
        ({"dimensions": 2}, [0.6, 0.8]),
        ({"dimensions": 2, "normalize": False}, [3.0, 4.0]),
        ({"dimensions": 3}, [3 / 29**0.5, 4 / 29**0.5, 2 / 29**0.5]),
    ],
)
def test_a_vector_is_cut_and_scaled_as_asked(params, expected):
    engine = EmbeddingEngine(ScriptedModel())
    engine.add(request("r", 4, token=3, **params))
    assert vector(run(engine)["r"]) == pytest.approx(expected)
