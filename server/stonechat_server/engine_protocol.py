"""What the server needs of an engine: `AsyncEngine`, or a scripted one in tests."""

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Protocol

from stonechat_models import EngineStats, GenerateRequest, ModelInfo, RequestOutput


class TokenizerLike(Protocol):
    """Text to ids, and what the model's files say about templates and special tokens."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """`bos_token`, `eos_token` and the like, by name."""

    @property
    def special_ids(self) -> Collection[int]: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Further templates by name, such as `tool_use`."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]: ...

    def token_text(self, token_id: int) -> str: ...


class EngineLike(Protocol):
    """Generates; errors as `stonechat_models` documents them."""

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
