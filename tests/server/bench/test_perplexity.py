"""Perplexity in windows, compared with plain transformers in float32."""

import asyncio
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stonechat_models import AsyncEngine, EngineConfig
from stonechat_server.bench.perplexity import windows_of
from stonechat_server.bench.report.page import render_report
from stonechat_server.bench.report.tables import csv_text, markdown
from stonechat_server.bench.results import BenchResult, Perplexity, read_json, write_json
from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.target import BenchError
from stonechat_server.engine_protocol import EngineLike
from tests.models.tiny_models import save_tiny_model, tiny_model
from tests.models.tiny_tokenizers import save_byte_level
from tests.server.fake_engine import FakeEngine, model_info
from tests.server.live import live_server

from .conftest import FakeServer

TEXT = "The river rises in the hills, and it meets the sea beyond the old stone bridge.\n" * 2


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def measure(engine: EngineLike | None = None, **settings: object) -> BenchResult:
    return asyncio.run(run_bench(BenchSettings.model_validate(settings), engine=engine))


def found(result: BenchResult) -> Perplexity:
    assert result.perplexity is not None
    return result.perplexity


@given(st.integers(0, 60), st.integers(2, 20), st.data())
def test_each_token_counts_once_with_enough_before_it(
    num_tokens: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    windows = list(windows_of(num_tokens, context, stride))
    counted = [i for window in windows for i in range(window.first, window.end)]
    all_starts = {window.start for window in windows} if stride == context else {0}
    assert counted == [i for i in range(num_tokens) if (i not in all_starts and i % context != 0)
                       or (stride < context and i > 0)]  # fmt: skip
    for window in windows:
        assert window.end - window.start <= context
        if window.start:
            assert window.first - window.start >= max(1, context - stride)


def test_it_equals_transformers_in_float32(tmp_path: Path, text: Path) -> None:
    """The reference slides its windows as the documentation of transformers does."""
    save_byte_level(tmp_path / "tokenizer")
    folder = save_tiny_model(tmp_path / "model", "llama", tmp_path / "tokenizer", vocab_size=300)
    config = EngineConfig(model=str(folder), device="cpu", dtype="float32", threads=1,
                          backend="transformers", kv_cache_bytes=1 << 20)  # fmt: skip
    engine = AsyncEngine.from_config(config)
    ids = torch.tensor([engine.tokenizer.encode(TEXT, add_special_tokens=True)])
    result = found(
        measure(engine, in_process=str(folder), perplexity=text, context_tokens=48, stride=20)
    )
    module, losses, previous_end = tiny_model("llama", vocab_size=300), [], 0
    for begin in range(0, ids.shape[1], 20):
        end = min(begin + 48, ids.shape[1])
        window, labels = ids[:, begin:end], ids[:, begin:end].clone()
        labels[:, : -(end - previous_end)] = -100
        with torch.inference_mode():
            logits = module(window).logits.double()
        loss = torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], reduction="none", ignore_index=-100
        )
        losses.append(loss[labels[0, 1:] != -100])
        previous_end = end
        if end == ids.shape[1]:
            break
    expected = torch.cat(losses)
    assert (result.num_tokens, result.num_counted) == (ids.shape[1], len(expected))
    assert result.mean_loss == pytest.approx(float(expected.mean()), rel=1e-5)
    assert result.value == pytest.approx(float(expected.mean().exp()), rel=1e-4)
    error = float(expected.mean().exp() * expected.std() / math.sqrt(len(expected)))
    assert result.error == pytest.approx(error, rel=1e-3)


def test_over_http_it_is_what_it_is_in_process(text: Path) -> None:
    settings = {"perplexity": text, "context_tokens": 32, "stride": 8}
    own = found(measure(FakeEngine(), in_process="tiny", **settings))
    # The scripted engine gives the token at place i of a window the loss (1 + i mod 3) / 2.
    first = [(1 + i % 3) / 2 for i in range(1, 32)]
    assert own.num_counted == len(TEXT) - 1
    assert own.mean_loss * own.num_counted > sum(first)
    with live_server(FakeEngine(), ledger=None) as live:
        over_http = measure(base_url=f"{live.url}/v1", **settings)
    there = found(over_http)
    assert (there.value, there.error, there.num_counted) == (own.value, own.error, own.num_counted)
    assert "<td>text.txt</td>" in render_report([over_http])
    assert "perplexity on text.txt" in render_report([over_http, over_http])  # compared
    for shown in (markdown(over_http), csv_text(over_http)):
        assert "text.txt" in shown
    assert read_json(write_json(over_http)).perplexity == there


def test_what_cannot_be_measured_is_said(text: Path, fake: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="needs a server with `/tokenize`"):
        measure(base_url=fake.url, model="good", perplexity=text)
    engine = FakeEngine(model=model_info(max_model_len=40))
    assert found(measure(engine, in_process="tiny", perplexity=text)).context == 39
    with pytest.raises(BenchError, match="--context-tokens 40: the model takes at most 39"):
        measure(FakeEngine(model=engine.model), in_process="t", perplexity=text, context_tokens=40)
    text.write_text("x")
    with pytest.raises(BenchError, match="has 1 tokens; a perplexity needs two"):
        measure(FakeEngine(), in_process="tiny", perplexity=text)
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        measure(FakeEngine(), in_process="tiny", perplexity=text)
