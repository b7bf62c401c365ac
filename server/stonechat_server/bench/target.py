"""The server under test: its model, the fields that it accepts, and measured requests to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter

import msgspec

from stonechat_server.bench.results import RequestRecord
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.workload import Prompt, SyntheticWorkload
from stonechat_server.client.http import HttpAnswer, HttpClient, TransportError
from stonechat_server.client.stream_recorder import ChunkDecoder, StreamRecorder, new_chunk_decoder

ServerFacts = dict[str, str | int | float | bool | None]


class BenchError(Exception):
    """The run cannot continue; the message tells the user why."""


class _ModelCard(msgspec.Struct):
    id: str
    owned_by: str | None = None
    stonechat: dict[str, object] | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


@dataclass(slots=True)
class Measured:
    """The record of a request, the gaps between its chunks of text in seconds, and its text."""

    record: RequestRecord
    gaps: list[float]
    text: str


@dataclass(slots=True)
class Target:
    """A server and the requests to it. `dropped` names the fields that it refused."""

    client: HttpClient
    settings: BenchSettings
    model: str = ""
    facts: ServerFacts = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    decoder: ChunkDecoder = field(default_factory=new_chunk_decoder)

    async def discover(self) -> None:
        """Find the model's name and the facts that the server reports about it.

        Raises BenchError if the server cannot be reached, if its list of models is invalid, or if
        neither the list nor the settings name a model.
        """
        status, body = await self._request("GET", "/models", b"")
        if status == 401 and self.settings.model is None:
            raise BenchError(
                "the server refuses the API key, or needs one: give it with --api-key or the "
                "variable OPENAI_API_KEY"
            )
        if status != 200:
            if self.settings.model is None:
                raise BenchError(f"GET /models returned {status}: name the model with --model")
            self.model = self.settings.model
            return
        try:
            cards = msgspec.json.decode(body, type=_ModelList).data
        except msgspec.DecodeError as error:
            raise BenchError(f"GET /models did not return a list of models: {error}") from error
        requested = self.settings.model
        matches = [card for card in cards if requested is None or card.id == requested]
        if not matches and requested is None:
            raise BenchError("the server lists no model; name one with --model")
        self.model = matches[0].id if matches else str(requested)
        facts = (matches[0].stonechat or {}) if matches else {}
        self.facts = {
            name: value
            for name, value in facts.items()
            if value is None or isinstance(value, str | int | float)
        }

    async def calibrate(self) -> int:
        """Find how many words make a prompt of `input_tokens`, from the server's own counts.

        Also finds the fields that the server refuses. Raises BenchError if it does not answer, or
        if the chat template alone has more tokens than `input_tokens`.
        """
        sizes = (16, 16 + max(64, self.settings.input_tokens))
        counts = []
        for size in sizes:
            prompt = SyntheticWorkload(size, 0.0, self.settings.seed + 1).prompt(-size)
            counts.append(await self._count(prompt))
        per_word = (counts[1] - counts[0]) / (sizes[1] - sizes[0])
        if per_word <= 0:
            return self.settings.input_tokens
        overhead = counts[0] - sizes[0] * per_word
        num_words = round((self.settings.input_tokens - overhead) / per_word)
        if num_words < 1:
            raise BenchError(
                f"--input-tokens {self.settings.input_tokens} is too short: the chat template "
                f"alone takes about {overhead:.0f} tokens"
            )
        return num_words

    async def _count(self, prompt: Prompt) -> int:
        while True:
            measured = await self.measure(prompt, origin=perf_counter(), num_tokens=1)
            record = measured.record
            if record.error is None:
                return record.prompt_tokens
            if not (record.status in (400, 422) and self._drop_refused(record.error)):
                raise BenchError(f"the calibration request failed: {record.error}")

    def _drop_refused(self, error: str) -> bool:
        for name in ("ignore_eos", "stream_options", "temperature"):
            if name in error and name not in self.dropped:
                self.dropped.add(name)
                return True
        if "ignore_eos" in self.dropped or not self.settings.ignore_eos:
            return False
        self.dropped.add("ignore_eos")  # the error names no field: this is the least common one
        return True

    async def _request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        parts: list[bytes] = []
        try:
            answer = await self.client.request(
                method,
                self.client.api_path + path,
                body,
                lambda data, _: parts.append(data),
                self.settings.timeout,
            )
        except (TransportError, TimeoutError) as error:
            raise BenchError(str(error) or "the server did not answer in time") from error
        return answer.status, b"".join(parts)

    def body(self, prompt: Prompt, num_tokens: int | None = None) -> bytes:
        """The JSON of a streamed request."""
        fields: dict[str, object] = {
            "model": self.model,
            "messages": prompt.messages,
            "max_tokens": num_tokens or prompt.max_tokens or self.settings.output_tokens,
            "temperature": self.settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.settings.ignore_eos:
            fields["ignore_eos"] = True
        for name in self.dropped:
            fields.pop(name, None)
        fields.update(self.settings.extra_body)
        return msgspec.json.encode(fields)

    def expected_tokens(self, prompt: Prompt) -> int | None:
        """Tokens that the answer must have; None if the server may end it earlier."""
        if not self.settings.ignore_eos or "ignore_eos" in self.dropped:
            return None
        return prompt.max_tokens or self.settings.output_tokens

    async def measure(
        self,
        prompt: Prompt,
        *,
        origin: float,
        due: float | None = None,
        num_tokens: int | None = None,
        repeat: int = 0,
    ) -> Measured:
        """Send one request and record it. A failure is in the record; it is never raised.

        `origin` and `due` are `perf_counter` times. The times of the record count from `origin`.
        Latencies count from `due`, so that they include a late start.
        """
        recorder = StreamRecorder(self.decoder)
        head: list[bytes] = []

        def on_body(data: bytes, now: float) -> None:
            recorder.feed(data, now)
            if not recorder.token_times and len(head) < 4:
                head.append(data)

        called_at = perf_counter()
        answer: HttpAnswer | None = None
        error: str | None = None
        try:
            answer = await self.client.request(
                "POST",
                self.client.api_path + "/chat/completions",
                self.body(prompt, num_tokens),
                on_body,
                self.settings.timeout,
            )
        except TransportError as failure:
            error = str(failure)
        except TimeoutError:
            error = f"no complete answer in {self.settings.timeout:g} s"
        end = perf_counter()
        if error is None and answer is not None and answer.status != 200:
            text = b"".join(head).decode("utf-8", "replace")[:500]
            error = f"HTTP {answer.status}: {text}"
        record = _record(recorder, origin, due or called_at, called_at, end)
        record.status = answer.status if answer is not None else 0
        record.error = error or record.error
        record.expected_tokens = num_tokens or self.expected_tokens(prompt)
        record.repeat = repeat
        return Measured(record, _gaps(recorder.token_times), "".join(recorder.text))


def _record(
    recorder: StreamRecorder, origin: float, due: float, sent: float, end: float
) -> RequestRecord:
    usage, times = recorder.usage, recorder.token_times
    details = usage.prompt_tokens_details if usage is not None else None
    return RequestRecord(
        start=due - origin,
        sent=sent - origin,
        first_token=times[0] - origin if times else None,
        end=end - origin,
        prompt_tokens=usage.prompt_tokens if usage is not None else 0,
        completion_tokens=usage.completion_tokens if usage is not None else len(times),
        cached_tokens=details.cached_tokens if details is not None else None,
        num_characters=sum(map(len, recorder.text)),
        num_chunks=len(times),
        finish_reason=recorder.finish_reasons.get(0),
        done=recorder.done,
        usage_stated=usage is not None,
        error=recorder.error,
    )


def _gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def request_headers(settings: BenchSettings) -> Mapping[str, str]:
    """Headers sent with every request."""
    return {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
