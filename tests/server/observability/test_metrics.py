from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from stonechat_server.admission.records import FinishedRequest
from tests.server.bodies import URL, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, text_script

VLLM_DASHBOARD_NAMES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:request_prompt_tokens_sum",
    "vllm:request_generation_tokens_count",
    "vllm:request_params_n_bucket",
    "vllm:num_preemptions_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
}


def samples(text: str) -> dict[str, float]:
    """Values by name, summed over labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def test_requests_are_counted_and_timed(engine: FakeEngine, new_client: ClientFactory) -> None:
    engine.script = text_script("a", "b", "c", pause=0.01)
    client = new_client()
    prompt_tokens = post(client, n=2).json()["usage"]["prompt_tokens"]
    post(client, stream=True)
    post(client, temperature=9)
    values = samples(client.get("/metrics").text)
    assert values["stonechat:request_success_total"] == 3
    assert values["stonechat:e2e_request_latency_seconds_count"] == 2
    assert values["stonechat:request_prompt_tokens_sum"] == 2 * prompt_tokens
    assert values["stonechat:request_generation_tokens_sum"] == 9
    assert values["stonechat:inter_token_latency_seconds_count"] == 6
    between = values["stonechat:inter_token_latency_seconds_sum"]
    assert 6 * 0.01 < between < 2 * values["stonechat:e2e_request_latency_seconds_sum"]
    assert values["stonechat:request_params_n_sum"] == 3
    assert values["stonechat:http_responses_total"] == 3
    assert values["stonechat:num_requests_running"] == 0
    assert not any(name.startswith("vllm:") for name in values)


def record(endpoint: str, **fields: Any) -> FinishedRequest:
    """A request of 4 prompt tokens and 2 generated tokens that took 3 s."""
    values: dict[str, Any] = {
        "request_id": "r",
        "endpoint": endpoint,
        "key": "k",
        "user": None,
        "safety_identifier": None,
        "model": "tiny-test",
        "status": 200,
        "error_code": None,
        "stream": False,
        "num_prompt_tokens": 4,
        "num_cached_tokens": 0,
        "num_completion_tokens": 2,
        "finish_reasons": ("stop",),
        "timings": None,
        "created": 1.0e9,
        "started": 5.0,
        "finished": 8.0,
    }
    return FinishedRequest(**values | fields)


def test_requests_are_told_apart_by_endpoint(new_client: ClientFactory) -> None:
    client = new_client()
    post(client)
    client.post(URL.removeprefix("/v1"), json={"messages": [{"role": "user", "content": "x"}]})
    client.app.state.server.metrics.request_finished(record("/v1/completions"))  # type: ignore[attr-defined]
    text = client.get("/metrics").text
    chat = f'{{endpoint="{URL}",model_name="tiny-test"}}'
    assert f"stonechat:e2e_request_latency_seconds_count{chat} 2.0" in text
    completions = chat.replace("chat/", "")
    assert f"stonechat:e2e_request_latency_seconds_sum{completions} 3.0" in text
    assert f"stonechat:request_prompt_tokens_sum{completions} 4.0" in text


def test_a_list_of_prompts_counts_its_choices_per_prompt(new_client: ClientFactory) -> None:
    client = new_client()
    reasons = ("stop",) * 2000 + ("length",) * 48
    metrics = client.app.state.server.metrics  # type: ignore[attr-defined]
    metrics.request_finished(record("/v1/completions", finish_reasons=reasons, num_choices=2))
    text = client.get("/metrics").text
    label = 'endpoint="/v1/completions"'
    assert f'request_params_n_sum{{{label},model_name="tiny-test"}} 2.0' in text
    success = f"request_success_total{{{label},finished_reason="
    assert f'{success}"stop",model_name="tiny-test"}} 2000.0' in text
    assert f'{success}"length",model_name="tiny-test"}} 48.0' in text


def test_the_series_of_vllm_add_the_endpoints_up(new_client: ClientFactory) -> None:
    client = new_client(metrics_vllm_names=True)
    metrics = client.app.state.server.metrics  # type: ignore[attr-defined]
    for endpoint in ("/v1/completions", "/v1/messages", "/v1/messages"):
        metrics.request_finished(record(endpoint))
    text = client.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("vllm:")]
    assert not any("endpoint=" in line for line in lines)
    names = [line.rpartition(" ")[0] for line in lines]
    assert len(names) == len(set(names))
    label = 'model_name="tiny-test"'
    assert f"vllm:e2e_request_latency_seconds_sum{{{label}}} 9.0" in text
    assert f'vllm:e2e_request_latency_seconds_bucket{{le="2.0",{label}}} 0.0' in text
    assert f'vllm:e2e_request_latency_seconds_bucket{{le="3.0",{label}}} 3.0' in text
    assert f'vllm:request_success_total{{finished_reason="stop",{label}}} 3.0' in text
    values = samples(text)
    assert values["vllm:request_params_n_created"] > 0
    assert values["vllm:request_params_n_created"] < values["stonechat:request_params_n_created"]


def test_unknown_paths_do_not_make_labels(new_client: ClientFactory) -> None:
    client = new_client()
    for number in range(5):
        client.get(f"/nowhere/{number}")
    text = client.get("/metrics").text
    assert 'http_responses_total{model_name="tiny-test",route="other",status="404"} 5.0' in text
    assert "nowhere" not in text


def test_the_names_of_vllm(new_client: ClientFactory) -> None:
    client = new_client(metrics_vllm_names=True)
    post(client)
    values = samples(client.get("/metrics").text)
    assert set(values) >= VLLM_DASHBOARD_NAMES
    assert values["vllm:request_success_total"] == values["stonechat:request_success_total"] == 1


def test_metrics_can_need_a_key(new_client: ClientFactory) -> None:
    client = new_client(metrics_key=True, api_key=["k"])
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"authorization": "Bearer k"}).status_code == 200
