"""LoRA adapters beside a model are models of their own names to clients."""

from pathlib import Path

import pytest

from stonechat_models import AdapterInfo, ModelLoadError
from stonechat_server.access.keys_file import add_key
from stonechat_server.app import create_app
from stonechat_server.catalog.memory import loaded_need
from stonechat_server.commands.banner import start_banner
from stonechat_server.commands.serve import _problem
from stonechat_server.settings import Settings
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def engine() -> FakeEngine:
    adapters = tuple(
        AdapterInfo(name=name, rank=8, num_weights=2, num_bytes=1000, weights_hash=name)
        for name in ("sql", "poems")
    )
    return FakeEngine(model=model_info(adapters=adapters))


def test_requests_choose_them_by_name(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client(served_model_name=["base", "alias"])
    prints = set()
    for name in ("base", "sql", "poems", "alias"):
        answer = client.post("/v1/chat/completions", json=CHAT | {"model": name}).json()
        assert answer["model"] == name
        prints.add(answer["system_fingerprint"])
    assert client.post("/v1/chat/completions", json=CHAT).json()["model"] == "base"
    assert [request.adapter for request in engine.requests] == ["", "sql", "poems", "", ""]
    assert len(prints) == 3, "one for the model, and one for each adapter"
    refused = client.post("/v1/chat/completions", json=CHAT | {"model": "other"})
    assert refused.status_code == 404
    assert "'base', 'alias', 'sql', 'poems'" in refused.json()["error"]["message"]


def test_the_metrics_have_their_names(new_client: ClientFactory) -> None:
    client = new_client()
    for name in ("tiny-test", "sql", "sql"):
        client.post("/v1/chat/completions", json=CHAT | {"model": name})
    lines = client.get("/metrics").text.splitlines()
    counts = {
        line.split('model_name="')[1].split('"')[0]: float(line.split()[-1])
        for line in lines
        if line.startswith("stonechat:request_success_total")
    }
    assert counts == {"tiny-test": 1.0, "sql": 2.0}
    running = [line for line in lines if line.startswith("stonechat:num_requests_running")]
    assert len(running) == 1, "the engine is one"


def test_the_list_says_what_they_belong_to(new_client: ClientFactory) -> None:
    client = new_client()
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert list(cards) == ["tiny-test", "sql", "poems"]
    assert [card["parent"] for card in cards.values()] == [None, "tiny-test", "tiny-test"]
    assert {card["root"] for card in cards.values()} == {"tiny-test"}
    assert cards["sql"]["stonechat"]["adapters"][0]["rank"] == 8
    assert client.get("/v1/models/poems").json() == cards["poems"]


def test_keys_may_be_limited_to_them(
    new_client: ClientFactory, engine: FakeEngine, tmp_path: Path
) -> None:
    key = add_key(tmp_path / "keys.toml", "limited", models=("poems",))
    client = new_client(keys_file=tmp_path / "keys.toml")
    headers = {"Authorization": f"Bearer {key}"}
    cards = client.get("/v1/models", headers=headers).json()["data"]
    assert [card["id"] for card in cards] == ["poems"]
    answer = client.post("/v1/chat/completions", json=CHAT, headers=headers).json()
    assert (answer["model"], engine.requests[0].adapter) == ("poems", "poems")
    other = client.post("/v1/chat/completions", json=CHAT | {"model": "sql"}, headers=headers)
    assert other.status_code == 404


def test_they_count_in_the_memory_of_a_loaded_model(engine: FakeEngine) -> None:
    difference = loaded_need(engine.model).total - loaded_need(model_info()).total
    assert difference == 2000


def test_the_name_of_the_model_is_refused_for_an_adapter() -> None:
    """Else nobody could reach the model, here without a name of its own."""
    info = AdapterInfo(name="m", rank=8, num_weights=2, num_bytes=1000, weights_hash="m")
    engine = FakeEngine(model=model_info(name="m", adapters=(info,)))
    with pytest.raises(ModelLoadError, match="m names the model and an adapter"):
        create_app(Settings(), engine)


def test_settings_and_banner(engine: FakeEngine) -> None:
    settings = Settings(lora=["sql=/adapters/a,b", "poems=someone/poems"])  # type: ignore[arg-type]
    assert settings.engine_config().lora == ("sql=/adapters/a,b", "poems=someone/poems")
    assert _problem(settings) is None
    clash = settings.model_copy(update={"served_model_name": ["poems"]})
    assert _problem(clash) == "poems names the model and an adapter: give --lora another name"
    banner = start_banner(engine.model, "tiny-test", "http://localhost", False, [])
    assert "adapters  sql, poems (2.0 kB), each a model of its own name" in banner
