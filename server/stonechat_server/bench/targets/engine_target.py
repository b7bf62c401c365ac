"""An engine in this process under test: the same requests, without HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from time import perf_counter

from stonechat_models import (
    EngineError,
    FinishReason,
    GenerateRequest,
    MediaInput,
    RequestOutput,
    SamplingParams,
)
from stonechat_server.bench.results import RequestRecord
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.target import BenchError, Facts, Measured, gaps_of
from stonechat_server.bench.targets.workload import Prompt
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.prompt.chat_template import RenderOptions, Templates
from stonechat_server.prompt.media import MediaPlacesError


@asynccontextmanager
async def engine_target(
    engine: EngineLike, settings: BenchSettings
) -> AsyncIterator["EngineTarget"]:
    """Run the engine while the context lasts. Raises BenchError if it does not generate."""
    if not engine.model.generates:
        raise BenchError(f"{engine.model.name} is for {engine.model.use}; it does not generate")
    if settings.images and engine.model.images is None:
        reason = engine.model.image_refusal
        raise BenchError(f"{engine.model.name} takes no images{': ' if reason else ''}{reason}")
    facts: Facts = {
        name: value
        for name, value in asdict(engine.model).items()
        if isinstance(value, str | int | float)
    }
    await engine.start()
    try:
        yield EngineTarget(engine, settings, Templates(engine.tokenizer), engine.model.name, facts)
    finally:
        await engine.shutdown()


@dataclass(slots=True)
class EngineTarget:
    """Requests to an engine, with the model's own chat template and sampling defaults."""

    engine: EngineLike
    settings: BenchSettings
    templates: Templates
    model: str
    facts: Facts
    dropped: set[str] = field(default_factory=set)
    _ids: "count[int]" = field(default_factory=count)

    async def count(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt."""
        token_ids, _ = await self._encode(prompt)
        return len(token_ids)

    async def measure(
        self,
        prompt: Prompt,
        *,
        origin: float,
        due: float | None = None,
        num_tokens: int | None = None,
        repeat: int = 0,
    ) -> Measured:
        """Run one request and record it (see `Target`)."""
        wanted = num_tokens or prompt.max_tokens or self.settings.output_tokens
        called_at = perf_counter()
        record = RequestRecord(
            start=(due or called_at) - origin,
            sent=called_at - origin,
            end=0.0,
            status=200,
            usage_stated=True,
            expected_tokens=wanted if self.settings.ignore_eos else None,
            repeat=repeat,
            num_images=prompt.num_images,
        )
        times: list[float] = []
        texts: list[str] = []
        try:
            async with asyncio.timeout(self.settings.timeout):
                token_ids, images = await self._encode(prompt)
                record.image_tokens = sum(image.num_tokens for image in images)
                request = self._request(token_ids, self._params(wanted), images)
                async for output in self.engine.generate(request):
                    _add(record, output)
                    if text := "".join(delta.text for delta in output.deltas):
                        times.append(perf_counter())
                        texts.append(text)
        except (EngineError, MediaPlacesError) as error:
            record.error = str(error)
        except TimeoutError:
            record.error = f"no complete answer in {self.settings.timeout:g} s"
        record.end = perf_counter() - origin
        record.first_token = times[0] - origin if times else None
        record.num_chunks, record.num_characters = len(times), sum(map(len, texts))
        return Measured(record, gaps_of(times), "".join(texts))

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts around it."""
        return self.engine.tokenizer.encode(text, add_special_tokens=True)

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The log-probabilities of all tokens but the first. Raises BenchError."""
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        try:
            async for output in self.engine.generate(self._request(token_ids, params)):
                if output.prompt_logprobs is not None:
                    return [entry.logprob for entry in output.prompt_logprobs if entry is not None]
        except EngineError as error:
            raise BenchError(str(error)) from error
        raise BenchError("the engine gave no log-probabilities of the text")

    def cpu_seconds(self) -> float:
        """Processor time of this thread: the engine computes in another."""
        return time.thread_time()

    async def _encode(self, prompt: Prompt) -> tuple[list[int], tuple[MediaInput, ...]]:
        if prompt.num_images:
            from stonechat_server.bench.targets.image_prompts import prompt_with_images

            return await prompt_with_images(prompt, self.engine, self.templates)
        messages = [dict(message) for message in prompt.messages]
        text = self.templates.default.render(messages, RenderOptions())
        return self.engine.tokenizer.encode(text), ()

    def _request(
        self, token_ids: Sequence[int], params: SamplingParams, images: tuple[MediaInput, ...] = ()
    ) -> GenerateRequest:
        return GenerateRequest(
            request_id=f"bench-{next(self._ids)}",
            prompt_token_ids=token_ids,
            params=params,
            arrival_time=time.monotonic(),
            media=images,
        )

    def _params(self, num_tokens: int) -> SamplingParams:
        defaults = asdict(self.engine.model.sampling_defaults)
        values = {name: value for name, value in defaults.items() if value is not None}
        values["temperature"] = self.settings.temperature
        return SamplingParams(max_tokens=num_tokens, ignore_eos=self.settings.ignore_eos, **values)


def _add(record: RequestRecord, output: RequestOutput) -> None:
    record.prompt_tokens = output.num_prompt_tokens
    record.cached_tokens = output.num_cached_tokens
    record.completion_tokens += sum(delta.num_tokens for delta in output.deltas)
    record.done = output.finished
    for delta in output.deltas:
        if delta.finish_reason is not None:
            record.finish_reason = delta.finish_reason.value
    if record.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
        record.error = output.error or f"the engine ended the answer: {record.finish_reason}"
