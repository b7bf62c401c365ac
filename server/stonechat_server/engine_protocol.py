"""The interface that the server needs of an engine: `AsyncEngine`, or a scripted one in tests."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from stonechat_models import EngineStats, GenerateRequest, ModelInfo, RequestOutput

if TYPE_CHECKING:
    from stonechat_models import MediaProcessor, Tokenizer


class EngineLike(Protocol):
    """Generates answers. Raises the errors that `stonechat_models` documents."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> "Tokenizer": ...

    @property
    def media_processor(self) -> "MediaProcessor | None":
        """None for a model that takes neither images, audio nor videos."""

    @property
    def is_alive(self) -> bool: ...

    async def start(self) -> None: ...

    async def shutdown(self) -> None: ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]: ...

    def end_choice(self, request_id: str, index: int) -> None:
        """End one choice of a running request. Unknown ids are ignored."""

    def stats(self) -> EngineStats: ...
