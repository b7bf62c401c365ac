"""The parts of the API that the terminal chat uses: a server's models, and streamed answers."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from stonechat_server.client.error_text import error_text
from stonechat_server.client.http import HttpClient, TransportError
from stonechat_server.client.stream_recorder import MeasuredUsage, StreamRecorder, new_chunk_decoder
from stonechat_server.options import UserError

if TYPE_CHECKING:
    from stonechat_models import Modality

Message = dict[str, Any]
MODALITIES: "tuple[Modality, ...]" = ("image", "audio")
TIMEOUT = 3600.0


class ChatError(UserError):
    """A request failed. The message is shown to the user."""


@dataclass(slots=True)
class ChatAnswer:
    """The part of an answer that has arrived. Times are `perf_counter` seconds."""

    started_at: float
    text: str = ""
    reasoning: str = ""
    usage: MeasuredUsage | None = None
    first_at: float | None = None
    last_at: float | None = None
    finish_reason: str | None = None
    ignored: str = ""
    """Request fields that the server ignored, from its `x-ignored-params` header."""
    chunks: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Throughput after the first token; None with fewer than two tokens."""
        count = (self.usage.completion_tokens if self.usage else 0) or self.chunks
        if self.first_at is None or self.last_at is None or count < 2:
            return None
        return (count - 1) / max(self.last_at - self.first_at, 1e-9)


@dataclass(slots=True)
class ChatApi:
    """The API of one server. `client` sends the API key."""

    client: HttpClient
    is_stonechat: bool = False
    """Whether the server is one of Stonechat. `models` finds it out."""
    states: Mapping[str, str] = field(default_factory=dict)
    """The states of the models, where the server has several. `models` finds them out."""
    refusals: "Mapping[tuple[str, Modality], str]" = field(default_factory=dict)
    """Texts that say of a model that it takes no images, or no audio. `models` finds them out."""
    _decoder: Any = field(default_factory=new_chunk_decoder)

    async def models(self) -> list[str]:
        """The names of the models that the server lists. Raises `ChatError`."""
        path = self.client.api_path + "/models"
        try:
            answer, content = await self.client.fetch("GET", path, b"", 30.0)
        except (TransportError, TimeoutError) as error:
            raise ChatError(str(error) or "the server does not answer") from error
        if answer.status not in (200, 404):
            raise ChatError(error_text(answer.status, content))
        try:
            cards = msgspec.json.decode(content)["data"]
            self.is_stonechat = any(card.get("owned_by") == "stonechat" for card in cards)
            self.states = {card["id"]: str(card["state"]) for card in cards if "state" in card}
            self.refusals = {
                (card["id"], modality): _refusal(card, modality)
                for card in cards
                for modality in MODALITIES
                if modality not in (card.get("input_modalities") or MODALITIES)  # not said: it may
            }
            return [card["id"] for card in cards]
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise ChatError(
                f"{path} of this server is no list of models: correct the URL to the root of an "
                "API, such as http://127.0.0.1:8000/v1, or name a model"
            ) from error

    async def stream(
        self, model: str, messages: Sequence[Message], settings: Mapping[str, object]
    ) -> AsyncGenerator[ChatAnswer, None]:
        """Yield the same `ChatAnswer` each time it has grown, and once more when it is complete.

        Closing the iterator cancels the request. Raises `ChatError`.
        """
        body = {
            "model": model,
            "messages": messages,
            **settings,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = ChatAnswer(started_at=perf_counter())
        recorder = StreamRecorder(self._decoder)
        changed = asyncio.Event()
        head: list[bytes] = []

        def on_body(data: bytes, now: float) -> None:
            if not recorder.token_times:
                head.append(data)
            recorder.feed(data, now)
            _fold(answer, recorder)
            changed.set()

        path = self.client.api_path + "/chat/completions"
        request = asyncio.ensure_future(
            self.client.request("POST", path, msgspec.json.encode(body), on_body, TIMEOUT)
        )
        request.add_done_callback(lambda _: changed.set())
        try:
            while not request.done():
                await changed.wait()
                changed.clear()
                if answer.chunks:
                    yield answer
            response = request.result()
        except (TransportError, TimeoutError) as error:
            raise ChatError(str(error) or "no complete answer in time") from error
        finally:
            request.cancel()
        if response.status != 200:
            raise ChatError(error_text(response.status, b"".join(head)))
        if recorder.error is not None:
            raise ChatError(recorder.error)
        answer.ignored = response.headers.get("x-ignored-params", "")
        yield answer


def _fold(answer: ChatAnswer, recorder: StreamRecorder) -> None:
    answer.text = "".join(recorder.text)
    answer.reasoning = "".join(recorder.reasoning)
    answer.usage, answer.chunks = recorder.usage, len(recorder.token_times)
    answer.finish_reason = recorder.finish_reasons.get(0)
    if recorder.token_times:
        answer.first_at, answer.last_at = recorder.token_times[0], recorder.token_times[-1]


def _refusal(card: Mapping[str, Any], modality: "Modality") -> str:
    reason = card.get("stonechat", {}).get(f"{modality}_refusal")
    what = "images" if modality == "image" else "audio"
    return f"{card['id']} takes no {what}{': ' if reason else ''}{reason or ''}"
