"""The interface that the server needs of an engine: `AsyncEngine`, or a scripted one in tests."""

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Protocol

from stonechat_models import EngineStats, GenerateRequest, ModelInfo, RequestOutput


class TokenizerLike(Protocol):
    """Encodes text, and knows the chat templates and special tokens of the model's files."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The text of each special token by name, such as `bos_token` or `eos_token`."""

    @property
    def special_ids(self) -> Collection[int]: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Other templates by name, such as `tool_use`."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]: ...

    def token_text(self, token_id: int) -> str: ...


class EngineLike(Protocol):
    """Generates answers. Raises the errors that `stonechat_models` documents."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> TokenizerLike: ...

    @property
    def is_alive(self) -> bool: ...

    async def start(self) -> None: ...

    async def shutdown(self) -> None: ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]: ...

    def stats(self) -> EngineStats: ...
