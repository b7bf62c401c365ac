"""Several real models, each in an engine process of its own, through OpenAI's client."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from stonechat_models import ModelSurvey
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_server.catalog.catalog import Catalog
from stonechat_server.catalog.entry import Entry
from stonechat_server.catalog.loader import ProcessLoader
from stonechat_server.settings import Settings
from tests.server.catalog.scripted_models import ScriptedLoader
from tests.server.live_server import live_server

MIB = 1 << 20
HI: Any = [{"role": "user", "content": "Hi"}]


class Loader(ProcessLoader):
    """Knows what models take, as a survey takes seconds."""

    def survey_all(self, settings: Any) -> None:
        pass

    async def survey(self, settings: Settings) -> ModelSurvey:
        return await ScriptedLoader({settings.model: 92 * MIB}).survey(settings)


@contextmanager
def serving(model: Path, budget: int) -> Iterator[tuple[openai.OpenAI, dict[str, Entry]]]:
    """The same model under two names. Each takes 380 MiB, by the count of the budget."""
    shared = Settings(
        model=str(model), memory_budget=budget, kv_cache_size=32 * MIB, threads=1, device="cpu"
    )
    entries = [Entry(names=(name,), settings=shared) for name in ("one", "two")]
    catalog = Catalog(entries, Loader(), shared)
    settings = Settings(ledger="off", keep_alive_interval=0.1)
    with (
        live_server(settings, catalog) as server,
        openai.OpenAI(base_url=f"{server.url}v1", api_key="k", max_retries=0) as client,
    ):
        yield client, {entry.name: entry for entry in entries}
    assert not children()


def children() -> list[psutil.Process]:
    """The engine processes that run."""
    worker = "stonechat_models.runtime.worker_main"
    return [child for child in psutil.Process().children() if worker in child.cmdline()]


def answer(client: openai.OpenAI, model: str) -> str:
    done = client.chat.completions.create(
        model=model, messages=HI, temperature=0, max_completion_tokens=8
    )
    return done.choices[0].message.content or ""


def test_one_makes_room_for_the_other_and_all_its_memory_comes_back(
    default_model_files: ModelFiles,
) -> None:
    with serving(default_model_files.weights[0], budget=600 * MIB) as (client, entries):
        first = answer(client, "one")
        (process,) = children()
        other = answer(client, "two")
        assert not process.is_running()
        assert len(children()) == 1
        assert [model.id for model in client.models.list()] == ["one", "two"]
        card: Any = client.models.retrieve("one")
        assert card.state == "sleeping"
        assert answer(client, "one") == first == other
        assert entries["one"].num_loads == 2
        assert entries["two"].unload_reasons == {"room": 1}
        client.post("/models/unload", body={"model": "one"}, cast_to=object)
        assert not children()


def test_a_killed_engine_ends_its_own_streams_only(default_model_files: ModelFiles) -> None:
    with serving(default_model_files.weights[0], budget=1024 * MIB) as (client, entries):
        for name in entries:
            answer(client, name)
        served = entries["one"].served
        assert served is not None
        process = psutil.Process(served.engine._runner.process_id)  # type: ignore[attr-defined]
        process.suspend()  # so that no stream is complete before its engine ends
        streams = [stream(client, "one") for _ in range(2)]
        other = stream(client, "two")
        process.kill()
        for one in streams:
            with pytest.raises(openai.APIError, match="The engine is not running"):
                list(one)
        assert list(other)[-1].choices[0].finish_reason == "length"
        assert answer(client, "one")
        assert entries["one"].unload_reasons == {"crash": 1}
        assert [entry.num_loads for entry in entries.values()] == [2, 1]
        assert len(children()) == 2


def stream(client: openai.OpenAI, model: str) -> Any:
    return client.chat.completions.create(
        model=model,
        messages=HI,
        stream=True,
        max_completion_tokens=100,
        extra_body={"ignore_eos": True},
    )
