"""Faults in a tiny real engine, as clients, logs, metrics and the ledger see them."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from stonechat_models import AsyncEngine
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_server.observability.ledger import Ledger, open_database, usage
from tests.models.engines import make_engine
from tests.models.tiny_models import tiny_model
from tests.server.bodies import URL, body
from tests.server.live import Live, live_server, wait_until
from tests.server.observability.test_metrics import samples

VOCAB_SIZE = 49152
POISON = " venom"
SECRET = "the device at 0xdeadbeef"


Fault = Callable[[Any, Any, int], Any]
"""Called with a batch, its logits and the poisoned token."""


class FaultyModel:
    """Calls `model`, and `fault` as well if the poisoned token is in a batch."""

    def __init__(self, model: Any, poison: int, fault: Fault) -> None:
        self._model, self._poison, self.fault = model, poison, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, batch: Any) -> Any:
        logits = self._model.forward(batch)
        is_poisoned = (batch.token_ids == self._poison).any()
        return self.fault(batch, logits, self._poison) if is_poisoned else logits


def kernel_error(batch: Any, logits: Any, poison: int) -> Any:
    raise RuntimeError(f"a kernel failed on {SECRET}")


def out_of_memory(batch: Any, logits: Any, poison: int) -> Any:
    raise torch.OutOfMemoryError(f"no memory on {SECRET}")


def not_a_number(batch: Any, logits: Any, poison: int) -> Any:
    """Put NaN into the rows of the sequences that have a poisoned token in this batch."""
    poisoned = (batch.token_ids == poison).nonzero().flatten()
    starts = batch.query_start[1:-1]
    is_poisoned = torch.isin(
        torch.bucketize(batch.logits_index, starts, right=True),
        torch.bucketize(poisoned, starts, right=True),
    )
    return torch.where(is_poisoned.unsqueeze(1), float("nan"), logits)


@pytest.fixture(scope="module")
def tokenizer(default_model_files: ModelFiles) -> Tokenizer:
    return Tokenizer.from_folder(default_model_files.folder)


@pytest.fixture(scope="module")
def module() -> Any:
    return tiny_model("llama", vocab_size=VOCAB_SIZE)


@pytest.fixture
def live(tokenizer: Tokenizer, module: Any, tmp_path: Path) -> Iterator[Live]:
    """A server whose engine can be made to fail. `live.app.state.faulty` is the model."""
    engine = make_engine(module, vocab_size=VOCAB_SIZE)
    (poison,) = tokenizer.encode(POISON)
    engine.model = faulty = FaultyModel(engine.model, poison, kernel_error)
    ledger = Ledger(f"sqlite:///{tmp_path / 'usage.db'}", tmp_path / "journal", flush_seconds=60)
    with live_server(AsyncEngine(engine, tokenizer), ledger) as server:
        server.app.state.faulty = faulty
        yield server


def ask(live: Live, text: str, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    poison = live.app.state.faulty._poison
    request = {"model": "tiny", "messages": messages, "max_tokens": 20, "seed": 3}
    request |= {"ignore_eos": True, "logit_bias": {str(poison): -100}}
    return httpx.post(live.url + URL, json=body(**request, **fields), timeout=60)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def usage_of(tmp_path: Path) -> list[tuple[int, int]]:
    database = open_database(f"sqlite:///{tmp_path / 'usage.db'}")
    rows = [(row.num_requests, row.num_failed) for row in usage(database, by=())]
    database.dispose()
    return rows


@pytest.mark.parametrize("fault", [kernel_error, out_of_memory, not_a_number])
def test_a_failed_step_fails_only_the_request_that_caused_it(
    live: Live, caplog: pytest.LogCaptureFixture, fault: Fault, tmp_path: Path
) -> None:
    live.app.state.faulty.fault = fault
    expected = text_of(ask(live, "hello"))
    answers: dict[str, httpx.Response] = {}

    def client(name: str, text: str) -> None:
        answers[name] = ask(live, text)

    texts = {"good-1": "hello", "good-2": "hello", "bad": f"hello{POISON}"}
    threads = [threading.Thread(target=client, args=item) for item in texts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert text_of(answers["good-1"]) == text_of(answers["good-2"]) == expected
    bad = answers["bad"]
    assert bad.status_code == 500
    assert bad.json()["error"]["code"] == "server_error"
    assert SECRET not in bad.text
    assert httpx.get(live.url + "/health").status_code == 200
    assert text_of(ask(live, "hello")) == expected

    metrics = httpx.get(live.url + "/metrics").text
    assert 'finished_reason="error",model_name="tiny"} 1.0' in metrics
    assert samples(metrics)["stonechat:kv_cache_usage_perc"] == 0
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    causes = [record for record in errors if record.exc_info]
    if fault is not not_a_number:
        assert samples(metrics)["stonechat:engine_failed_steps_total"] >= 1
        assert len(causes) == 1
        assert causes[0].exc_info is not None
        assert SECRET in str(causes[0].exc_info[1])
    live.signal()
    live.thread.join(60)
    assert usage_of(tmp_path) == [(5, 1)]


def test_a_stream_that_fails_gets_an_error_event(live: Live) -> None:
    engine = live.app.state.server.sole.engine._runner.engine
    step, state = engine.step, {"left": 4}

    def fails_later() -> Any:
        state["left"] -= 1
        if state["left"] == 0:
            raise MemoryError(SECRET)
        return step()

    engine.step = fails_later
    answer = ask(live, "hello", stream=True)
    assert answer.status_code == 200
    last = answer.text.strip().split("\n\n")[-1]
    assert '"error"' in last
    assert SECRET not in answer.text
    wait_until(lambda: httpx.get(live.url + "/health").status_code == 503)
    assert httpx.get(live.url + "/ready").status_code == 503
    later = ask(live, "hello")
    assert later.status_code == 503
    assert later.json()["error"]["code"] == "engine_dead"
    assert later.headers["retry-after"] == "5"
    assert httpx.get(live.url + "/metrics").status_code == 200
    assert live.services.sole.admission.num_running == 0
