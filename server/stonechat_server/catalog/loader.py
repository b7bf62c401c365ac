"""Surveys models and loads their engines: each engine in a process of its own."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from stonechat_models import AsyncEngine, EngineConfig, ModelLoadError, ModelSurvey, survey_models
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.settings import Settings

log = logging.getLogger("stonechat.catalog")


class ProcessLoader:
    """What the catalog loads models with. Nothing here imports PyTorch."""

    def __init__(self) -> None:
        self._is_closed = False
        self._surveys: dict[EngineConfig, asyncio.Future[ModelSurvey]] = {}

    def survey_all(self, settings: Iterable[Settings]) -> None:
        """Begin to survey models, one after another in one process."""
        configs = [config for one in settings if (config := _config(one)) not in self._surveys]
        loop = asyncio.get_running_loop()
        for config in configs:
            future = self._surveys[config] = loop.create_future()
            future.add_done_callback(_retrieve)
        if configs:
            _in_thread(lambda: self._survey(configs, loop))

    async def survey(self, settings: Settings) -> ModelSurvey:
        """What the model of these settings takes. Raises `EngineError` with the reason."""
        config = _config(settings)
        known = self._surveys.get(config)
        if known is None or _is_bad(known):  # the files may have been replaced
            self._surveys.pop(config, None)
            self.survey_all([settings])
        return await asyncio.shield(self._surveys[config])

    def _survey(self, configs: list[EngineConfig], loop: asyncio.AbstractEventLoop) -> None:
        """Survey models (blocking). Each gets an answer, whatever happens."""
        answers: Iterator[ModelSurvey | ModelLoadError] = survey_models(configs)
        for config in configs:
            if self._is_closed:
                return
            try:
                answer = next(answers)
            except Exception as error:
                log.exception("%s cannot be surveyed", config.model)
                answer = ModelLoadError(f"it cannot be surveyed: {type(error).__name__}: {error}")
            if not self._is_closed:
                loop.call_soon_threadsafe(_settle, self._surveys[config], answer)

    async def load(
        self, settings: Settings, kv_bytes: int, previous: EngineLike | None
    ) -> EngineLike:
        """Load in a thread, and start the engine. Its KV cache has `kv_bytes`.

        `previous` is an engine of the same model. If the wait is cancelled, the new engine is ended
        once it is there. Raises `EngineError` with the reason.
        """
        config = _config(settings)
        if settings.kv_cache_fraction is None:
            config = replace(config, kv_cache_bytes=kv_bytes or None)
        before = previous if isinstance(previous, AsyncEngine) else None

        def build() -> AsyncEngine:
            return AsyncEngine.in_process(config, log.info, lambda: not self._is_closed, before)

        loaded: asyncio.Future[AsyncEngine] = asyncio.get_running_loop().create_future()
        _in_thread(partial(_load, build, loaded))
        engine = await loaded
        await engine.start()
        return engine

    def close(self) -> None:
        """End the loads that run."""
        self._is_closed = True


def _config(settings: Settings) -> EngineConfig:
    return replace(settings.engine_config(), engine_process=True)


def _load(build: Callable[[], AsyncEngine], loaded: asyncio.Future[AsyncEngine]) -> None:
    """Build an engine (blocking), and set it as the result of `loaded`, in its event loop."""
    engine: AsyncEngine | None = None
    problem: Exception | None = None
    try:
        engine = build()
    except Exception as error:
        problem = error

    def hand_over() -> None:
        if engine is None:
            if not loaded.done():
                loaded.set_exception(problem or ModelLoadError("loading failed"))
        elif loaded.done():  # nobody waits for it
            _in_thread(partial(asyncio.run, engine.shutdown()))
        else:
            loaded.set_result(engine)

    try:
        loaded.get_loop().call_soon_threadsafe(hand_over)
    except RuntimeError:  # the loop is closed: the server has ended, and the process ends with it
        log.debug("an engine was loaded too late")


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="stonechat-loader", daemon=True).start()


def _settle(future: asyncio.Future[ModelSurvey], answer: ModelSurvey | ModelLoadError) -> None:
    if isinstance(answer, ModelLoadError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _is_bad(future: asyncio.Future[ModelSurvey]) -> bool:
    """Whether it is known that the model cannot be loaded."""
    return future.done() and (future.exception() is not None or future.result().refusal is not None)


def _retrieve(future: asyncio.Future[ModelSurvey]) -> None:
    """Nobody may have asked for a survey that failed."""
    if not future.cancelled():
        future.exception()
