"""The models of a server that has several: loads them when they are asked for, and unloads them.

Everything here runs on the event loop. One load runs at a time; the others wait for their turn.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from stonechat_models import EngineError, ModelSurvey
from stonechat_server.admission.controller import Tenants
from stonechat_server.admission.refusals import unavailable
from stonechat_server.background import BackgroundTasks
from stonechat_server.catalog.entry import Entry, Lease, State
from stonechat_server.catalog.failures import (
    crashed,
    kept_error,
    load_failed,
    not_together,
    note_failure,
)
from stonechat_server.catalog.loader import ProcessLoader
from stonechat_server.catalog.memory import DOES_NOT_FIT, MemoryNeed, loaded_need, planned_need
from stonechat_server.catalog.room import POLL_SECONDS, NotWantedError, Room
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError
from stonechat_server.settings import Settings

DRAIN_POLL_SECONDS = 0.2
"""How often it is looked whether the server drains while a model loads."""
WATCH_SECONDS = 1.0
"""How often it is looked which models are idle for too long, or have crashed."""

log = logging.getLogger("stonechat.catalog")


class Catalog:
    """Holds the models. `enter`, `ready` and `leave` stand around each request."""

    def __init__(
        self,
        entries: Sequence[Entry],
        loader: ProcessLoader,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.entries = entries
        self.tenants = Tenants()
        self._loader = loader
        self._settings = settings
        self._clock = clock
        self._room = Room(entries, settings)
        self._turn = asyncio.Lock()
        self.start_errors: list[APIError] = []
        self._has_started = self._is_draining = False
        self._tasks = BackgroundTasks()

    # --- requests ---

    def enter(self, entry: Entry) -> Lease:
        """Begin a request. `leave` must follow, whatever happens."""
        entry.num_waiting += 1
        return Lease(entry)

    async def ready(self, lease: Lease, timeout: float | None = None) -> None:
        """Wait until the model is loaded, and load it if nobody does.

        Raises `APIError` 503 if it does not fit, fails to load, or is not loaded within `timeout`
        seconds (default: `load_timeout`). The load goes on if this wait is cancelled.
        """
        entry = lease.entry
        limit = self._settings.load_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                while not entry.is_loaded:
                    await self._step_towards(entry)
        except TimeoutError:
            raise unavailable(
                f"The model '{entry.name}' was not loaded within {limit:g} s.",
                reason="load_timeout",
                retry_after=limit,
            ) from None
        entry.num_waiting -= 1
        entry.num_users += 1
        lease.is_user = True

    def leave(self, lease: Lease) -> None:
        """End a request."""
        if lease.is_user:
            lease.entry.num_users -= 1
            lease.entry.last_used = self._clock()
        else:
            lease.entry.num_waiting -= 1

    async def _step_towards(self, entry: Entry) -> None:
        if entry.state is State.LOADED:  # `is_loaded` is false: it has crashed
            await self._note_crash(entry)
        elif entry.state is State.UNLOADING:
            await asyncio.sleep(POLL_SECONDS)
        elif entry.state is State.FAILED and self._clock() < entry.retry_at:
            raise kept_error(entry, self._clock())
        else:
            error = await self._outcome(self._loading(entry))
            if error is not None:
                raise error

    async def _outcome(self, load: "asyncio.Task[APIError | None]") -> APIError | None:
        """Wait for a load, which goes on if this wait is cancelled, or until the server drains."""
        while not load.done():
            if self._is_draining:
                return unavailable("The server is shutting down.", reason="draining", retry_after=5)
            await asyncio.wait({load}, timeout=DRAIN_POLL_SECONDS)
        return load.result()

    def drain(self) -> None:
        """Let no request wait any longer. May be called from the handler of a signal."""
        self._is_draining = True

    # --- loading and unloading ---

    async def load(self, entry: Entry) -> None:
        """Load a model because somebody asks for that, whatever failed before.

        Raises what `ready` raises.
        """
        entry.retry_at = 0.0
        lease = self.enter(entry)
        try:
            await self.ready(lease)
        finally:
            self.leave(lease)

    async def unload(self, entry: Entry, *, force: bool = False) -> None:
        """Unload a model because somebody asks for that. Nothing happens if it is not loaded.

        Running requests are waited for; with `force`, they end with an error. Raises `APIError`
        409 while it loads.
        """
        if entry.state is State.LOADING:
            raise APIError(
                409, f"The model '{entry.name}' is being loaded.", param="model", code="model_busy"
            )
        entry.is_unload_asked = True
        if entry.state is State.LOADED:
            entry.state = State.UNLOADING  # at once: others may ask before the task begins
            self._tasks.spawn(self._room.free(entry, "asked"))
            await asyncio.sleep(0)  # it begins
        while entry.state is State.UNLOADING:
            entry.is_forced = entry.is_forced or force
            await asyncio.sleep(POLL_SECONDS)

    def _loading(self, entry: Entry) -> "asyncio.Task[APIError | None]":
        """The one load of a model that runs, or a new one. It returns why it failed."""
        if entry.loading is None:
            entry.loading = self._tasks.spawn(self._load(entry, entry.state))
            entry.state = State.LOADING
        return entry.loading

    async def _load(self, entry: Entry, state_before: State) -> APIError | None:
        started = self._clock()
        try:
            async with self._turn:
                await self._load_now(entry)
        except NotWantedError:
            return None
        except APIError as error:
            return error if error.code == DOES_NOT_FIT else self._fail(entry, error)
        except EngineError as error:
            return self._fail(entry, load_failed(entry, str(error)))
        except Exception as error:
            log.exception("the model '%s' could not be loaded", entry.name)
            return self._fail(entry, load_failed(entry, f"{type(error).__name__}: {error}"))
        finally:
            entry.loading = None
            if entry.state is State.LOADING:
                entry.state = state_before
        entry.loaded_at = entry.last_used = self._clock()
        entry.load_seconds = entry.loaded_at - started
        entry.num_loads += 1
        log.info("loaded %s in %.1f s", entry.name, entry.load_seconds)
        return None

    async def _load_now(self, entry: Entry) -> None:
        settings = entry.settings
        survey = await self._loader.survey(settings)
        if survey.refusal is not None:
            raise load_failed(entry, survey.refusal)
        need = self._plan(entry, survey)
        await self._room.make(entry, need)
        served = entry.served
        previous = None if served is None else served.engine
        engine = await self._loader.load(settings, need.kv_bytes, previous)
        try:
            if served is None:
                build, name = ServedModel.build, entry.name
                served = await asyncio.to_thread(build, settings, engine, self.tenants, name)
            else:
                await asyncio.to_thread(served.wake, engine)
        except BaseException:
            await engine.shutdown()
            raise
        entry.views = served.by_name(entry.names)
        entry.need = loaded_need(engine.model)
        entry.state, entry.error = State.LOADED, None

    def _plan(self, entry: Entry, survey: ModelSurvey) -> MemoryNeed:
        entry.survey = survey
        budget = self._room.budget(entry)
        entry.need = planned_need(entry.settings, survey, budget, len(self.entries))
        return entry.need

    def _fail(self, entry: Entry, error: APIError) -> APIError:
        note_failure(entry, error, self._clock())
        if self._has_started:  # `start_errors` are shown by themselves
            log.error("%s", error)
        return kept_error(entry, self._clock())

    async def _note_crash(self, entry: Entry) -> None:
        """Take note that the engine of a model has ended by itself."""
        assert entry.served is not None
        self._fail(entry, crashed(entry))
        entry.count_unload("crash")
        await entry.served.engine.shutdown()

    # --- from start to end ---

    async def start(self) -> None:
        """Load what is to be loaded at start. `start_errors` are those of the loads that fail."""
        self._loader.survey_all([entry.settings for entry in self.entries])
        for entry in self.entries:
            if entry.settings.load_at_start and not self._is_draining:
                try:
                    await self.load(entry)
                except APIError as error:
                    self.start_errors.append(entry.error or error)
        if gone := [e.name for e in self.entries if e.settings.load_at_start and e.unload_reasons]:
            self.start_errors.append(not_together(gone))
        self._has_started = True
        self._tasks.spawn(self._survey())
        self._tasks.spawn(self._watch())

    async def _survey(self) -> None:
        """Learn the sizes of the models that are not loaded, and say which cannot be served."""
        for entry in self.entries:
            try:
                survey = await self._loader.survey(entry.settings)
            except EngineError as error:
                log.warning("the model '%s' cannot be loaded: %s", entry.name, error)
                continue
            if survey.refusal is not None:
                log.warning("the model '%s' cannot be loaded: %s", entry.name, survey.refusal)
            elif entry.need is None:
                self._plan(entry, survey)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self.look_after()
            except Exception:
                log.exception("the models could not be looked after")

    async def look_after(self) -> None:
        """Unload models that are idle for too long, and start pinned ones that have crashed."""
        for entry in self.entries:
            if entry.state is State.LOADED and not entry.is_loaded:
                await self._note_crash(entry)
            if entry.settings.pinned:
                if entry.state is State.FAILED and self._clock() >= entry.retry_at:
                    self._loading(entry)
            elif entry.is_idle_since(self._clock() - entry.settings.keep_alive):
                await self._room.free(entry, "idle")

    async def shutdown(self) -> None:
        """End all engines. Requests that run on them end with an error."""
        self._loader.close()
        await self._tasks.close()
        served = [entry.served for entry in self.entries if entry.served is not None]
        await asyncio.gather(*(model.engine.shutdown() for model in served))
