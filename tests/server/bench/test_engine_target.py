"""A benchmark of an engine in this process: the loads and records of one over HTTP."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from stonechat_models import (
    EngineDeadError,
    GenerateRequest,
    RequestOutput,
    SamplingDefaults,
)
from stonechat_server.bench.report.page import render_report
from stonechat_server.bench.report.verdict import verdict
from stonechat_server.bench.results import BenchResult
from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.target import BenchError
from stonechat_server.cli import main
from tests.server.fake_engine import FakeEngine, model_info, text_script
from tests.server.fake_media import seeing_engine
from tests.server.live import live_server

NOTE = "Measured without a server: no HTTP is in these figures."


def answers(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
    """As many pieces as were asked for, the last of them with a finish reason."""
    return text_script(*["x"] * (request.params.max_tokens or 1), cached=5)(request)


def bench(engine: FakeEngine, **settings: Any) -> BenchResult:
    base = {"in_process": "tiny", "concurrency": (2,), "num_requests": 4, "input_tokens": 200,
            "output_tokens": 6, "warmup": 1}  # fmt: skip
    return asyncio.run(run_bench(BenchSettings.model_validate({**base, **settings}), engine=engine))


def test_its_requests_are_those_of_a_server() -> None:
    own, served = FakeEngine(answers), FakeEngine(answers)
    result = bench(own)
    with live_server(served) as live:
        over_http = asyncio.run(
            run_bench(
                BenchSettings(base_url=f"{live.url}/v1", concurrency=(2,), num_requests=4,
                              input_tokens=200, output_tokens=6, warmup=1),
                None,
            )
        )  # fmt: skip
    prompts = {bytes(request.prompt_token_ids) for request in own.requests}
    measured = [r for r in served.requests if r.params.max_tokens == 6]
    assert prompts == {bytes(request.prompt_token_ids) for request in measured}
    one, other = own.requests[-1].params, measured[-1].params
    assert (one.temperature, one.ignore_eos, one.max_tokens) == (0.0, True, 6)
    assert (other.temperature, other.ignore_eos, other.max_tokens) == (0.0, True, 6)
    for (level,) in (result.levels, over_http.levels):
        assert (level.num_requests, level.num_errors) == (4, 0)
        assert (level.completion_tokens, level.cached_tokens) == (24, 20)
    assert {r.prompt_tokens for r in result.levels[0].records} == {
        r.prompt_tokens for r in over_http.levels[0].records
    }


def test_it_says_that_no_http_is_in_the_figures() -> None:
    result = bench(FakeEngine(answers))
    assert NOTE in verdict(result)
    assert NOTE in render_report([result])
    assert all(check.passed for check in result.checks if "generator" not in check.name)
    assert not any("[DONE]" in check.name or "usage" in check.name for check in result.checks)
    assert result.server["backend"] == "transformers"


def test_speeds_are_measured_in_process_too() -> None:
    result = bench(FakeEngine(answers), pp=(300,), tg=(16,), repeats=2)
    assert [speed.name for speed in result.speeds] == ["pp300", "tg16"]
    assert all(len(speed.tokens_per_second) == 2 for speed in result.speeds)
    assert len([check for check in result.checks if check.passed]) >= 5


def test_the_models_sampling_defaults_apply() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_k=20, repetition_penalty=1.1)
    engine = FakeEngine(answers, model_info(sampling_defaults=defaults))
    bench(engine, temperature=0.3)
    params = engine.requests[-1].params
    assert (params.temperature, params.top_k, params.repetition_penalty) == (0.3, 20, 1.1)


def test_a_failure_and_an_answer_without_text_are_found() -> None:
    dead = bench(FakeEngine(lambda _: [EngineDeadError("the engine stopped")]))
    assert dead.levels[0].num_errors == 4
    assert {record.error for record in dead.levels[0].records} == {"the engine stopped"}
    silent = bench(FakeEngine(text_script(*[""] * 6)))
    failed = {check.name for check in silent.checks if not check.passed}
    assert "every answer held text" in failed
    slow = bench(FakeEngine(lambda request: [60.0]), timeout=0.01)
    assert slow.levels[0].records[0].error == "no complete answer in 0.01 s"


def test_a_model_for_embeddings_is_refused() -> None:
    with pytest.raises(BenchError, match="is for embeddings; it does not generate"):
        bench(FakeEngine(model=model_info(generates=False)))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": "m"}, "--model is for a server; --in-process measures without one"),
        ({"base_url": "http://x"}, "--base-url is for a server"),
        ({"perplexity": "t", "context_tokens": 8, "stride": 9}, "it would skip text"),
        ({"stride": 9}, "are for --perplexity"),
        ({"perplexity": "t", "pp": "8"}, "--pp and --tg and --perplexity cannot be given together"),
        ({"perplexity": "t", "duration": 8}, "--duration has no meaning with --perplexity"),
    ],
)
def test_settings_that_contradict_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        BenchSettings.model_validate({"in_process": "tiny", **fields})


def test_a_model_that_does_not_load_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--in-process", "no-such-file.gguf"]) == 1
    assert capsys.readouterr().err.startswith("stonechat bench: ")


def test_prompts_with_images_are_those_of_a_server() -> None:
    own, served = seeing_engine(answers), seeing_engine(answers)
    images = {"images": 2, "image_size": "20x10"}
    result = bench(own, **images)
    with live_server(served) as live:
        settings = {"base_url": f"{live.url}/v1", "concurrency": (2,), "num_requests": 4,
                    "input_tokens": 200, "output_tokens": 6, "warmup": 1, **images}  # fmt: skip
        over_http = asyncio.run(run_bench(BenchSettings.model_validate(settings)))

    def sent(engine: FakeEngine) -> set[tuple[bytes, tuple[object, ...]]]:
        requests = [request for request in engine.requests if request.params.max_tokens == 6]
        return {
            (
                bytes(request.prompt_token_ids),
                tuple((image.content_hash, image.places) for image in request.media),
            )
            for request in requests
        }

    assert sent(own) == sent(served)
    assert all(len(images) == 2 for _, images in sent(own))
    for (level,) in (result.levels, over_http.levels):
        assert (level.num_errors, level.num_images, level.image_tokens) == (0, 8, 64)


def test_a_model_of_text_is_not_measured_with_images() -> None:
    engine = FakeEngine(answers, model_info(image_refusal="images need Pillow"))
    with pytest.raises(BenchError, match="takes no images: images need Pillow"):
        bench(engine, images=1)
