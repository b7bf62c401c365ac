"""A server under examination: sends requests and keeps what came back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stonechat_server.client.error_text import error_text
from stonechat_server.client.http import HttpClient, TransportError
from stonechat_server.options import UserError

Json = dict[str, Any]
QUESTION = "Name three rivers of Europe."


class NoAnswerError(UserError):
    """The server gave no usable answer; the message says what came instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, headers (lower case) and body, or the events of its stream."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Json:
        """The body as an object. Raises NoAnswerError if it is none."""
        try:
            body = json.loads(self.text)
        except ValueError as error:
            raise NoAnswerError(f"the body is not JSON: {self.text[:80]!r}") from error
        if not isinstance(body, dict):
            raise NoAnswerError("the body is not a JSON object")
        return body

    def events(self) -> list[str]:
        """The data of the stream's events, `[DONE]` included."""
        blocks = self.text.replace("\r\n", "\n").split("\n\n")
        lines = [
            [one[5:].strip() for one in b.split("\n") if one.startswith("data:")] for b in blocks
        ]
        return ["\n".join(data) for data in lines if data]

    def chunks(self) -> list[Json]:
        """The stream's JSON chunks. Raises NoAnswerError if there is none, or one is an error."""
        try:
            chunks = [json.loads(data) for data in self.events() if data != "[DONE]"]
        except ValueError as error:
            raise NoAnswerError("a chunk of the stream is not JSON") from error
        if not chunks:
            raise NoAnswerError(f"no stream of events: {self.text[:80]!r}")
        for chunk in chunks:
            if "error" in chunk:
                raise NoAnswerError(f"the stream has an error: {str(chunk['error'])[:120]}")
        return chunks

    def choice(self, index: int = 0) -> Json:
        """A choice of a plain answer. Raises NoAnswerError for an answer without it."""
        if self.status != 200:
            raise NoAnswerError(f"status {error_text(self.status, self.text.encode())}")
        choices = self.json().get("choices")
        if not isinstance(choices, list) or len(choices) <= index:
            raise NoAnswerError("the answer has no such choice")
        choice = choices[index]
        if not isinstance(choice, dict):
            raise NoAnswerError("the choice is not an object")
        return choice

    @property
    def content(self) -> str:
        """The text of the first choice."""
        return (self.choice().get("message") or {}).get("content") or ""

    @property
    def calls(self) -> list[Json]:
        """The tool calls of the first choice."""
        return (self.choice().get("message") or {}).get("tool_calls") or []

    @property
    def usage(self) -> Json:
        """The counts of tokens; empty if there are none."""
        return self.json().get("usage") or {}


class RefusalError(Exception):
    """The server says that it does not take a field that was asked for."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


@dataclass(slots=True)
class Server:
    """Requests to one server."""

    client: HttpClient
    model: str
    timeout: float

    async def send(self, method: str, path: str, body: object = b"") -> Answer:
        """Send a request with a body as it is: JSON of an object, or bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = self.client.api_path + path
        try:
            answer, content = await self.client.fetch(method, path, data, self.timeout)
        except TransportError as error:
            raise NoAnswerError(str(error)) from error
        except TimeoutError as error:
            raise NoAnswerError(f"no answer in {self.timeout:g} s") from error
        return Answer(answer.status, answer.headers, content.decode("utf-8", "replace"))

    async def post(self, body: object) -> Answer:
        """Send a body to the chat endpoint."""
        return await self.send("POST", "/chat/completions", body)

    async def chat(self, text: str = QUESTION, **fields: object) -> Answer:
        """Ask a question. Fields that are None are left out."""
        messages = [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 24}
        body |= fields
        return await self.post({name: value for name, value in body.items() if value is not None})

    async def ask(self, text: str = QUESTION, **fields: object) -> Answer:
        """Ask with fields that the server may refuse. Raises RefusalError if it does."""
        return taken(await self.chat(text, **fields))


def taken(answer: Answer) -> Answer:
    """The answer. Raises RefusalError if the server understood the request and said no to it."""
    if answer.status in (400, 404, 405, 413, 415, 422, 501):
        raise RefusalError(answer)
    return answer


EYES = ("image", "vision", "multimodal")
EARS = ("audio",)
"""What servers call it if a model takes images, or audio."""


async def find_model(client: HttpClient, timeout: float, name: str | None) -> tuple[str, Json]:
    """The first model that the server lists, or the one with this name; and what it says of it.

    Raises NoAnswerError if it lists none and there is no name.
    """
    try:
        cards = await _models(client, timeout)
    except NoAnswerError:
        if name is None:
            raise
        cards = []
    if name is None:
        return str(cards[0]["id"]), cards[0]
    return name, next((card for card in cards if card.get("id") == name), {})


def takes(card: Json, names: Sequence[str]) -> bool:
    """Whether a server says that its model takes this, in one of the ways of servers."""
    architecture, capabilities = card.get("architecture"), card.get("capabilities")
    said = card.get("input_modalities")
    if isinstance(architecture, dict):
        said = said or architecture.get("input_modalities")
    if isinstance(capabilities, dict):
        capabilities = [name for name, has_it in capabilities.items() if has_it is True]
    return any(name in (said or ()) or name in (capabilities or ()) for name in names)


async def _models(client: HttpClient, timeout: float) -> list[Json]:
    answer = await Server(client, "", timeout).send("GET", "/models")
    if answer.status == 401:
        raise NoAnswerError("the server refuses the API key, or needs one (--api-key)")
    body = answer.json() if answer.status == 200 else {}
    models = body.get("data")
    if not models:
        raise NoAnswerError(
            f"it lists no models (status {answer.status}): correct the URL to the root of an API, "
            "such as http://127.0.0.1:8000/v1, or name a model with --model"
        )
    return [card for card in models if isinstance(card, dict)]
