"""Predicted outputs: they reach the engine, and the usage counts which tokens were right."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.bodies import ask, error_of, post, stream
from tests.server.fake_engine import FakeEngine, text_script

ANSWER = "Hello wörld 👋"


def details(usage: dict[str, Any]) -> tuple[int, int]:
    token_details = usage["completion_tokens_details"]
    return (
        token_details["accepted_prediction_tokens"],
        token_details["rejected_prediction_tokens"],
    )


def prediction(content: object) -> dict[str, object]:
    return {"type": "content", "content": content}


@pytest.mark.parametrize("content", [ANSWER, [{"type": "text", "text": "Hello "}] * 2])
def test_a_prediction_reaches_the_engine_as_tokens(
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
        ("Hallo wörld 👋!", (1 + 13, 4)),  # two letters, the l's, find the position again
        ("Hello", (5, 0)),
    ],
)
def test_accepted_and_rejected_tokens_are_counted(
    client: TestClient, predicted: str, counts: tuple[int, int]
) -> None:
    usage = ask(client, prediction=prediction(predicted))["usage"]
    assert details(usage) == counts
    assert sum(counts) == len(predicted.encode())
    *_, last = stream(
        client, prediction=prediction(predicted), stream_options={"include_usage": True}
    )
    assert details(last["usage"]) == counts


def test_every_choice_counts(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hel", "lo")
    usage = ask(client, n=3, prediction=prediction("Help"))["usage"]
    assert details(usage) == (9, 3)


def test_a_long_prediction_is_cut_to_the_context_length(
    client: TestClient, engine: FakeEngine
) -> None:
    context = engine.model.max_model_len
    usage = ask(client, prediction=prediction(ANSWER + "!" * 2 * context))["usage"]
    assert len(engine.requests[-1].prediction_token_ids) == context
    assert details(usage) == (len(ANSWER.encode()), context - len(ANSWER.encode()))


def test_nothing_is_counted_without_a_prediction(client: TestClient) -> None:
    assert details(ask(client)["usage"]) == (0, 0)
    assert details(ask(client, prediction=None)["usage"]) == (0, 0)


@pytest.mark.parametrize(
    "malformed", ["text", {"type": "content"}, {"type": "x", "content": "y"}, prediction([])]
)
def test_a_malformed_prediction_is_refused(client: TestClient, malformed: object) -> None:
    response = post(client, prediction=malformed)
    assert response.status_code == 400
    assert (error_of(response)["param"] or "").startswith("prediction")
