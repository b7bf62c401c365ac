"""A server under test: its model, the fields that it accepts, and measured requests to it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import msgspec

from stonechat_server.bench.results import RequestRecord
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.target import BenchError, Facts, Measured, gaps_of
from stonechat_server.bench.targets.workload import Prompt
from stonechat_server.client.error_text import error_text
from stonechat_server.client.http import HttpAnswer, HttpClient, TransportError
from stonechat_server.client.stream_recorder import (
    ChunkDecoder,
    MeasuredUsage,
    StreamRecorder,
    new_chunk_decoder,
)


class _ModelCard(msgspec.Struct):
    id: str
    owned_by: str | None = None
    stonechat: dict[str, object] | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Logprob(msgspec.Struct):
    logprob: float


class _ScoredChoice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Logprob] | None] | None = None


class _Scored(msgspec.Struct):
    choices: list[_ScoredChoice]


@dataclass(slots=True)
class HttpTarget:
    """A server and the requests to it. `dropped` names the fields that it refused."""

    client: HttpClient
    settings: BenchSettings
    model: str = ""
    facts: Facts = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    decoder: ChunkDecoder = field(default_factory=new_chunk_decoder)

    async def discover(self) -> None:
        """Find the model's name and the facts that the server reports about it.

        Raises BenchError if the server cannot be reached, if its list of models is invalid, or if
        neither the list nor the settings name a model.
        """
        status, body = await self._request("GET", f"{self.client.api_path}/models", b"")
        if status == 401 and self.settings.model is None:
            raise BenchError(
                "the server refuses the API key, or needs one: give it with --api-key or the "
                "variable OPENAI_API_KEY"
            )
        if status != 200:
            if self.settings.model is None:
                raise BenchError(
                    f"{self.settings.base_url} lists no models (status {status}): "
                    "correct the URL to the root of an API, such as http://127.0.0.1:8000/v1, or "
                    "name a model with --model"
                )
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

    async def count(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt, by the usage of a request for one token.

        Also finds the fields that the server refuses. Raises BenchError if it does not answer.
        """
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
        try:
            answer, content = await self.client.fetch(method, path, body, self.settings.timeout)
        except (TransportError, TimeoutError) as error:
            raise BenchError(str(error) or "the server did not answer in time") from error
        return answer.status, content

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

    def _expected_tokens(self, prompt: Prompt, num_tokens: int | None) -> int | None:
        """Tokens that the answer must have; None if the server may end it earlier."""
        if not self.settings.ignore_eos or "ignore_eos" in self.dropped:
            return None
        return num_tokens or prompt.max_tokens or self.settings.output_tokens

    async def measure(
        self,
        prompt: Prompt,
        *,
        origin: float,
        due: float | None = None,
        num_tokens: int | None = None,
        repeat: int = 0,
    ) -> Measured:
        """Send one request and record it (see `Target`)."""
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
            error = f"HTTP {error_text(answer.status, b''.join(head))}"
        record = _record(recorder, origin, due or called_at, called_at, end)
        record.status = answer.status if answer is not None else 0
        record.error = error or record.error
        record.expected_tokens = self._expected_tokens(prompt, num_tokens)
        record.repeat = repeat
        record.num_images = prompt.num_images
        return Measured(record, gaps_of(recorder.token_times), "".join(recorder.text))

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, by the server's `/tokenize` (vLLM's). Raises BenchError."""
        fields = {"model": self.model, "prompt": text, "add_special_tokens": True}
        root = self.client.api_path.removesuffix("/v1")
        status, body = await self._request("POST", f"{root}/tokenize", msgspec.json.encode(fields))
        try:
            if status == 200:
                return msgspec.json.decode(body, type=_Tokens).tokens
        except msgspec.DecodeError:
            pass
        raise BenchError(
            f"--perplexity needs a server with `/tokenize` as vLLM has it; this one answers "
            f"{error_text(status, body)}"
        )

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The log-probabilities of all tokens but the first, by `/completions` with
        `prompt_logprobs`. Raises BenchError."""
        fields = {
            "model": self.model,
            "prompt": token_ids,
            "prompt_logprobs": 0,
            "max_tokens": 1,
            "temperature": 0,
        }
        path = f"{self.client.api_path}/completions"
        status, body = await self._request("POST", path, msgspec.json.encode(fields))
        if status != 200:
            raise BenchError(f"the server refuses prompt_logprobs: {error_text(status, body)}")
        try:
            scored = msgspec.json.decode(body, type=_Scored).choices[0].prompt_logprobs or []
            pairs = zip(token_ids, scored, strict=True)
            return [entry[str(token)].logprob for token, entry in pairs if entry is not None]
        except (msgspec.DecodeError, IndexError, KeyError, ValueError) as error:
            raise BenchError(
                "the server does not honour prompt_logprobs, so it has no perplexity; "
                "`--in-process MODEL` measures the file without a server"
            ) from error

    def cpu_seconds(self) -> float:
        """Processor time of this process, which only generates load."""
        return time.process_time()


def _record(
    recorder: StreamRecorder, origin: float, due: float, sent: float, end: float
) -> RequestRecord:
    times = recorder.token_times
    usage = recorder.usage or MeasuredUsage(completion_tokens=len(times))
    return RequestRecord(
        start=due - origin,
        sent=sent - origin,
        first_token=times[0] - origin if times else None,
        end=end - origin,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.details.cached_tokens,
        image_tokens=usage.details.image_tokens,
        num_characters=sum(map(len, recorder.text)),
        num_chunks=len(times),
        finish_reason=recorder.finish_reasons.get(0),
        done=recorder.done,
        usage_stated=recorder.usage is not None,
        error=recorder.error,
    )
