"""Memory for models: unloads those that were not used for longest, so that another fits."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from stonechat_server.catalog.entry import Entry, State
from stonechat_server.catalog.memory import MemoryNeed, budget_of, does_not_fit
from stonechat_server.settings import Settings

POLL_SECONDS = 0.05
"""How often it is looked whether a model that is waited for has become idle."""

log = logging.getLogger("stonechat.catalog")


class NotWantedError(Exception):
    """Nobody waits for the load any more."""


class Room:
    """The budgets of the devices, and the models that share them."""

    def __init__(self, entries: Sequence[Entry], settings: Settings) -> None:
        self._entries = entries
        self._settings = settings
        self._budgets: dict[str, int] = {}

    def budget(self, entry: Entry) -> int:
        """What all models on the device of a surveyed model may take together."""
        assert entry.survey is not None
        device = entry.survey.device
        if device not in self._budgets:
            self._budgets[device] = budget_of(self._settings, entry.survey)
        return self._budgets[device]

    async def make(self, entry: Entry, need: MemoryNeed) -> None:
        """Unload what was not used for longest until there is room. An idle model goes first.

        If all are busy, one of them takes no more requests, and its last one is waited for. Raises
        `APIError` 503 if there can be no room, and `NotWantedError` once nobody waits for it. A
        pinned model is always waited for.
        """

        def is_wanted() -> bool:
            return entry.num_waiting > 0 or entry.settings.pinned

        budget = self.budget(entry)
        pinned = sum(o.num_bytes or 0 for o in self._beside(entry, need) if o.settings.pinned)
        if need.total + pinned > budget:
            raise does_not_fit(entry.name, need, budget, pinned)
        while True:
            others = self._beside(entry, need)
            if need.total + sum(other.num_bytes or 0 for other in others) <= budget:
                return
            if not is_wanted():
                raise NotWantedError
            victims = [o for o in others if o.may_be_unloaded]
            if victims:
                victim = min(victims, key=lambda other: (other.num_users > 0, other.last_used))
                await self.free(victim, "room", is_wanted=is_wanted)
            else:  # one is being unloaded already, or its first requests are about to run
                await asyncio.sleep(POLL_SECONDS)

    async def free(
        self, entry: Entry, reason: str, *, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Unload a loaded model once no request runs on it, or at once if that is forced.

        Requests that come meanwhile wait, and load it again. Gives up once it is not wanted,
        unless somebody has asked for it meanwhile.
        """
        assert entry.served is not None
        entry.state, entry.is_forced = State.UNLOADING, False
        entry.is_unload_asked = reason == "asked"
        while entry.num_users and not entry.is_forced:
            await asyncio.sleep(POLL_SECONDS)
            if not is_wanted() and not entry.is_unload_asked:
                entry.state = State.LOADED
                return
        await entry.served.engine.shutdown()
        entry.state = State.SLEEPING
        entry.count_unload(reason)
        log.info("unloaded %s (%s)", entry.name, reason)

    def _beside(self, entry: Entry, need: MemoryNeed) -> list[Entry]:
        """The other models that take memory of the device."""
        return [
            other
            for other in self._entries
            if other is not entry
            and other.state in (State.LOADED, State.UNLOADING)
            and other.need is not None
            and other.need.device == need.device
        ]
