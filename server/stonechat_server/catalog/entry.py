"""One model of a server: its names and settings, its state, and who uses it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from stonechat_server.catalog.memory import MemoryNeed, loaded_need
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    import asyncio

    from stonechat_models import ModelSurvey


class State(StrEnum):
    """Where a model is. Only a loaded one has an engine."""

    UNLOADED = "unloaded"
    """Never loaded by this server."""
    LOADING = "loading"
    """A load runs, or waits for its turn or for room."""
    LOADED = "loaded"
    UNLOADING = "unloading"
    """It finishes the requests that run, and takes no others."""
    SLEEPING = "sleeping"
    """It was loaded. Its engine's process has ended; its tokenizer and template are kept."""
    FAILED = "failed"
    """The last load failed, or the engine crashed."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A model that may be loaded and unloaded."""

    names: tuple[str, ...]
    """What requests may give as `model`. The first is the one in metrics and lists."""
    settings: Settings
    state: State = State.UNLOADED
    views: Mapping[str, ServedModel] = field(default_factory=dict)
    """What serves each name. Empty: it was never loaded."""
    survey: "ModelSurvey | None" = None
    need: MemoryNeed | None = None
    """What it takes while it is loaded, or what it is planned to take."""
    num_users: int = 0
    """Requests that run on it."""
    num_waiting: int = 0
    """Requests that wait until it is loaded."""
    created: int = field(default_factory=lambda: int(time.time()))
    last_used: float = 0.0
    """When the last request ended or the load did, in the catalog's clock."""
    error: APIError | None = None
    """Why it has failed."""
    num_failures: int = 0
    """Failures in a row."""
    num_all_failures: int = 0
    """Loads that failed, and crashes."""
    retry_at: float = 0.0
    """No request loads a failed model before this time."""
    loaded_at: float = 0.0
    load_seconds: float = 0.0
    """How long the last load took."""
    is_forced: bool = False
    """While it is unloaded: the requests that run on it are not waited for."""
    is_unload_asked: bool = False
    """While it is unloaded: somebody asks for that, and it is not only to make room."""
    loading: "asyncio.Task[APIError | None] | None" = None
    num_loads: int = 0
    unload_reasons: dict[str, int] = field(default_factory=dict)
    """How often it was unloaded, by reason."""

    @property
    def name(self) -> str:
        return self.names[0]

    @classmethod
    def of_loaded(cls, names: tuple[str, ...], settings: Settings, served: ServedModel) -> "Entry":
        """The entry of a model that is always loaded."""
        entry = cls(names=names, settings=settings, state=State.LOADED)
        entry.views = served.by_name(names)
        return entry

    @property
    def served(self) -> ServedModel | None:
        """The model without adapters. None: it was never loaded."""
        return self.views.get(self.name)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Its names, and those of its LoRA adapters."""
        adapters = [text.partition("=")[0].strip() for text in self.settings.lora]
        return tuple(self.views) or (*self.names, *adapters)

    @property
    def is_loaded(self) -> bool:
        """Whether it takes requests. An engine that has crashed does not."""
        return self.state is State.LOADED and self.views[self.name].engine.is_alive

    @property
    def may_be_unloaded(self) -> bool:
        """Whether room may be made of it. Whoever waited for its load runs first."""
        return self.state is State.LOADED and not self.settings.pinned and not self.num_waiting

    def is_idle_since(self, time: float) -> bool:
        """Whether it could be unloaded, and was not used after `time`. Never if it is kept."""
        return (
            self.settings.keep_alive >= 0
            and self.may_be_unloaded
            and not self.num_users
            and self.last_used <= time
        )

    def count_unload(self, reason: str) -> None:
        """Count that it was unloaded."""
        self.unload_reasons[reason] = self.unload_reasons.get(reason, 0) + 1

    @property
    def num_bytes(self) -> int | None:
        """The size of the model in memory; None as long as it is unknown."""
        if self.need is not None:
            return self.need.total
        return None if self.served is None else loaded_need(self.served.engine.model).total

    @property
    def max_model_len(self) -> int | None:
        """The context length, which is that of the model's files before it is loaded."""
        if self.served is not None:
            return self.served.engine.model.max_model_len
        return None if self.survey is None else self.survey.max_model_len


@dataclass(slots=True)
class Lease:
    """A request's hold on a model: while it lasts, the model is not unloaded for want of use."""

    entry: Entry
    is_user: bool = False
    """Whether the request runs on the model. It waits for the model before."""
