"""A catalog over scripted engines: models of given sizes, loads that wait or fail, a clock."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from stonechat_models import ModelLoadError, ModelSurvey, ServingForm
from stonechat_server.catalog.catalog import Catalog
from stonechat_server.catalog.entry import Entry
from stonechat_server.catalog.memory import PROCESS_BYTES
from stonechat_server.settings import Settings
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.fake_media import TEMPLATE, FakeMediaProcessor
from tests.virtual_time import run as run_in_virtual_time

GIB = 1 << 30
KV_BYTES = 1 << 20


def in_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run a test in an event loop of its own."""

    @wraps(test)
    def run() -> None:
        run_in_virtual_time(test())

    return run


async def turns(number: int = 20) -> None:
    """Let the tasks run that can."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class ScriptedLoader:
    """Loads `FakeEngine`s. A model whose name is in `gates` waits there, one in `errors` fails."""

    weights: dict[str, int]
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    kv_bytes: dict[str, int] = field(default_factory=dict)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: what the engine says of the model, beside its sizes."""
    is_closed: bool = False

    def survey_all(self, settings: Iterable[Settings]) -> None:
        pass

    async def survey(self, settings: Settings) -> ModelSurvey:
        weights = self.weights[settings.model]
        form = ServingForm("as stored", "native", weights, weights, 1024, 1024, True)
        return ModelSurvey(
            name=settings.model,
            architecture="LlamaForCausalLM",
            num_parameters=1,
            num_active_parameters=1,
            stored_bytes=weights,
            stored_types={},
            max_model_len=4096,
            device="cpu",
            total_memory=64 * GIB,
            free_memory=20 * GIB,
            refusal=self.errors.get(settings.model) if weights == 0 else None,
            native_refusal=None,
            forms=(form,),
        )

    async def load(self, settings: Settings, kv_bytes: int, previous: Any) -> FakeEngine:
        name = settings.model
        self.started.append(name)
        self.kv_bytes[name] = kv_bytes
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.errors:
            raise ModelLoadError(self.errors[name])
        info = model_info(
            name=name,
            weight_bytes=self.weights[name],
            num_blocks=kv_bytes // (16 * 1024),
            block_size=16,
            kv_bytes_per_token=1024,
            **self.changes.get(name, {}),
        )
        engine = FakeEngine(model=info)
        if info.images is not None:
            engine.media_processor = FakeMediaProcessor()
            engine.tokenizer = ByteTokenizer(chat_template=TEMPLATE)
        if previous is not None:
            engine.tokenizer = previous.tokenizer
        self.engines[name] = engine
        return engine

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Models:
    """A catalog, and what it is made of."""

    catalog: Catalog
    loader: ScriptedLoader
    clock: Clock

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.catalog.entries if name in entry.names)

    @property
    def loaded(self) -> set[str]:
        return {entry.name for entry in self.catalog.entries if entry.is_loaded}

    async def use(self, name: str) -> None:
        """A request that ends at once."""
        lease = self.catalog.enter(self[name])
        try:
            await self.catalog.ready(lease)
        finally:
            self.clock.now += 1
            self.catalog.leave(lease)


def models(
    sizes: dict[str, int], settings: dict[str, dict[str, Any]] | None = None, **shared: Any
) -> Models:
    """Models of these sizes in GiB, and a budget of 10 GiB unless `shared` names another."""
    budget = shared.pop("memory_budget", 10 * GIB)
    common = Settings(kv_cache_size=KV_BYTES, memory_budget=budget, **shared)
    entries = [
        Entry(
            names=(name,),
            settings=common.model_copy(update={"model": name, **(settings or {}).get(name, {})}),
        )
        for name in sizes
    ]
    beside = PROCESS_BYTES + KV_BYTES
    loader = ScriptedLoader({name: max(0, size * GIB - beside) for name, size in sizes.items()})
    clock = Clock()
    return Models(Catalog(entries, loader, common, clock), loader, clock)
