"""A request with many prompts: it runs in part, behind what came meanwhile, and counts what ran."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi.testclient import TestClient

from stonechat_models import EmbeddingInfo, GenerateRequest, RequestOutput
from stonechat_server.admission.fair_queue import Admission
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info, output, text_script

URL = "/v1/completions"
AT_ONCE = 18
"""Half of the 32 sequences of a step and an eighth more."""


def test_each_prompt_arrives_when_its_turn_comes(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("x", pause=0.01)
    assert client.post(URL, json={"prompt": ["a"] * 40}).status_code == 200
    arrivals = [request.arrival_time for request in engine.requests]
    assert len(arrivals) == 40
    assert arrivals == sorted(arrivals)
    assert arrivals[AT_ONCE] > arrivals[0]  # an output lies between


def test_an_embedding_model_holds_few_texts_of_a_list(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.model = model_info(max_num_seqs=8, generates=False, num_blocks=0)
    limits = new_client().app.state.server.sole.admission.limits  # type: ignore[attr-defined]
    assert limits.max_running_sequences * limits.max_share == 2 * 8  # two batches
    assert limits.max_running_tokens * limits.max_share == 2 * 4096


class HangingEngine(FakeEngine):
    """Never answers."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]:
        self.requests.append(request)
        await asyncio.Event().wait()
        yield output(request)


def test_texts_go_to_the_engine_by_length(new_client: ClientFactory, engine: FakeEngine) -> None:
    info = EmbeddingInfo(size=3, pooling="mean", is_normalized=True)
    engine.model = model_info(max_num_seqs=2, generates=False, num_blocks=0, embedding=info)
    new_client().post("/v1/embeddings", json={"input": ["a" * (5 - i % 5) for i in range(20)]})
    lengths = [len(request.prompt_token_ids) for request in engine.requests]
    assert lengths == sorted(lengths)


def test_texts_that_the_engine_was_given_count_though_they_did_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = EmbeddingInfo(size=3, pooling="mean", is_normalized=True)
    engine = HangingEngine(
        model=model_info(max_num_seqs=8, generates=False, num_blocks=0, embedding=info)
    )
    records: list[FinishedRequest] = []
    used = []
    app = create_app(Settings(), engine, sinks=[records.append])
    admission = app.state.server.sole.admission
    leave = admission.leave

    def note(place: Admission) -> None:
        used.append(place.num_used_tokens)
        leave(place)

    monkeypatch.setattr(admission, "leave", note)
    with TestClient(app, "http://127.0.0.1:8000") as client:
        body, headers = {"input": ["abc"] * 40}, {"X-Request-Timeout": "0.3"}
        assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 504
    assert len(engine.requests) == 2 * 8  # the texts of two batches
    assert records[0].num_prompt_tokens == used[0] == 3 * 16
    assert records[0].finish_reasons == ("error",)
