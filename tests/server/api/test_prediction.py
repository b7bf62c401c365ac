"""Predicted outputs: given to the engine, and counted against the answer."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.bodies import ask, error_of, post, stream
from tests.server.fake_engine import FakeEngine, text_script

ANSWER = "Hello wörld 👋"


def details(usage: dict[str, Any]) -> tuple[int, int]:
    counted = usage["completion_tokens_details"]
    return counted["accepted_prediction_tokens"], counted["rejected_prediction_tokens"]


def prediction(content: object) -> dict[str, object]:
    return {"type": "content", "content": content}


@pytest.mark.parametrize("content", [ANSWER, [{"type": "text", "text": "Hello "}] * 2])
def test_it_reaches_the_engine_as_tokens(
    client: TestClient, engine: FakeEngine, content: object
) -> None:
    ask(client, prediction=prediction(content))
    text = content if isinstance(content, str) else "Hello Hello "
    assert bytes(engine.requests[-1].prediction_token_ids).decode() == text


@pytest.mark.parametrize(
    ("predicted", "counts"),
    [
        (ANSWER, (len(ANSWER.encode()), 0)),
        ("no", (0, 2)),
        ("Hallo wörld 👋!", (1 + 13, 4)),  # the o and the space are needed to find it again
        ("Hello", (5, 0)),
    ],
)
def test_what_came_true_is_counted(
    client: TestClient, predicted: str, counts: tuple[int, int]
) -> None:
    usage = ask(client, prediction=prediction(predicted))["usage"]
    assert details(usage) == counts
    assert sum(counts) == len(predicted.encode())
    *_, last = stream(
        client, prediction=prediction(predicted), stream_options={"include_usage": True}
    )
    assert details(last["usage"]) == counts


def test_each_choice_counts(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hel", "lo")
    usage = ask(client, n=3, prediction=prediction("Help"))["usage"]
    assert details(usage) == (9, 3)


def test_of_a_long_one_counts_what_an_answer_can_have(
    client: TestClient, engine: FakeEngine
) -> None:
    context = engine.model.max_model_len
    usage = ask(client, prediction=prediction(ANSWER + "!" * 2 * context))["usage"]
    assert len(engine.requests[-1].prediction_token_ids) == context
    assert details(usage) == (len(ANSWER.encode()), context - len(ANSWER.encode()))


def test_nothing_is_counted_without_one(client: TestClient) -> None:
    assert details(ask(client)["usage"]) == (0, 0)
    assert details(ask(client, prediction=None)["usage"]) == (0, 0)


@pytest.mark.parametrize(
    "wrong", ["text", {"type": "content"}, {"type": "x", "content": "y"}, prediction([])]
)
def test_another_form_is_refused(client: TestClient, wrong: object) -> None:
    response = post(client, prediction=wrong)
    assert response.status_code == 400
    assert (error_of(response)["param"] or "").startswith("prediction")
