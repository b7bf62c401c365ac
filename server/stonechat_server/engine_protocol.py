"""The interface that the server needs of an engine: `AsyncEngine`, or a scripted one in tests."""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from stonechat_models import (
    AudioOptions,
    EngineStats,
    GenerateRequest,
    ImageOptions,
    ModelInfo,
    PreparedMedia,
    RequestOutput,
)

if TYPE_CHECKING:
    from stonechat_models import PairFrame


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

    @property
    def added_tokens(self) -> Collection[str]:
        """The texts that become one token wherever they stand."""

    @property
    def added_token_ids(self) -> Collection[int]: ...

    @property
    def pair_frame(self) -> "PairFrame":
        """What stands around the two texts of a pair."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]: ...

    def encode_parts(
        self, parts: Sequence[tuple[str, bool]], other_tokens: frozenset[str] = frozenset()
    ) -> list[int]:
        """Encode joined parts. In those with the flag, special and other tokens are text."""

    @property
    def tokenizer_class(self) -> str:
        """The class of transformers that the model's files are for."""

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ids. Ids outside the vocabulary are skipped."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return a token's exact bytes, perhaps a part of a character; b"" for an unknown id."""

    def token_string(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it; "" for an unknown id."""

    def token_text(self, token_id: int) -> str: ...


class MediaProcessorLike(Protocol):
    """Prepares files of images and audio for the model."""

    def prepare(
        self, files: Sequence[bytes], options: ImageOptions | AudioOptions
    ) -> "Future[list[PreparedMedia]]":
        """Prepare each file. Raises `TooManyMediaError`, and the result `InvalidMediaError`."""


class EngineLike(Protocol):
    """Generates answers. Raises the errors that `stonechat_models` documents."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> TokenizerLike: ...

    @property
    def media_processor(self) -> MediaProcessorLike | None:
        """None for a model that takes neither images nor audio."""

    @property
    def is_alive(self) -> bool: ...

    async def start(self) -> None: ...

    async def shutdown(self) -> None: ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]: ...

    def end_choice(self, request_id: str, index: int) -> None:
        """End one choice of a running request. Unknown ids are ignored."""

    def stats(self) -> EngineStats: ...
