"""The engine of an ingress: it sends each request to one of the replicas."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from stonechat_models import (
    EngineDeadError,
    EngineStats,
    GenerateRequest,
    MediaProcessor,
    ModelInfo,
    RequestOutput,
    RequestTimings,
    Tokenizer,
)
from stonechat_server.ray_serve.prefixes import prompt_hashes
from stonechat_server.ray_serve.wire import (
    Accepted,
    Description,
    Failed,
    Output,
    decode_record,
    encode,
)

logger = logging.getLogger("stonechat.ray")


class Stream(Protocol):
    """The records of one call. `cancel` ends it in the replica too."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def cancel(self) -> None: ...


class Replicas(Protocol):
    """The calls to the replicas; `handle.RayReplicas` makes them by Ray Serve."""

    def generate(self, request: bytes, hashes: bytes) -> Stream:
        """Run a request on the replica that the router chooses for these `prompt_hashes`."""

    def end_choice(self, request_id: str, index: int, replica: str) -> None:
        """End one choice of a request that this replica runs."""


@dataclass(slots=True)
class _Counts:
    """What this ingress has sent and received."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0

    def add(self, output: RequestOutput, *, is_first: bool) -> None:
        if is_first:
            self.num_prompt_tokens += output.num_prompt_tokens
            self.num_cached_tokens += output.num_cached_tokens
        self.num_generated_tokens += sum([delta.num_tokens for delta in output.deltas])


@dataclass(slots=True)
class ReplicatedEngine:
    """An `EngineLike` over replicas. `model` states the capacity that this ingress may fill."""

    replicas: Replicas
    model: ModelInfo
    tokenizer: Tokenizer
    is_alive: bool = field(default=True, init=False)
    clock: Callable[[], float] = time.monotonic
    _counts: _Counts = field(default_factory=_Counts, init=False)
    _media_processor: MediaProcessor | None = field(default=None, init=False)
    _replica_of: dict[str, str] = field(default_factory=dict, init=False)
    """The replica of each request that runs; empty until a replica has accepted it."""

    async def start(self) -> None:
        """Nothing is to be done: the replicas run already."""

    async def shutdown(self) -> None:
        """Send no more requests. The replicas go on: other ingresses use them too."""
        self.is_alive = False
        if self._media_processor is not None:
            self._media_processor.close()

    @property
    def media_processor(self) -> MediaProcessor | None:
        """What prepares images and audio, in this ingress; None if the model takes text alone."""
        token_ids = self.model.media_token_ids
        if self._media_processor is None and token_ids:
            self._media_processor = MediaProcessor(self.tokenizer.path.parent, token_ids)
        return self._media_processor

    def stats(self) -> EngineStats:
        """The requests and tokens of this ingress. Other figures are those of the replicas."""
        num_accepted = sum([bool(replica) for replica in self._replica_of.values()])
        return EngineStats(
            num_running=num_accepted,
            num_waiting=len(self._replica_of) - num_accepted,
            num_prompt_tokens=self._counts.num_prompt_tokens - self._counts.num_cached_tokens,
            num_generated_tokens=self._counts.num_generated_tokens,
            num_cache_queried_tokens=self._counts.num_prompt_tokens,
            num_cache_hit_tokens=self._counts.num_cached_tokens,
        )

    def end_choice(self, request_id: str, index: int) -> None:
        """End one choice of a running request. Unknown ids are ignored."""
        if replica := self._replica_of.get(request_id):
            self.replicas.end_choice(request_id, index, replica)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]:
        """Yield a request's outputs, as `AsyncEngine` does. Closing the iterator aborts it.

        Raises the errors of `AsyncEngine.generate`, and `EngineDeadError` if the replica dies.
        """
        if not self.is_alive:
            raise EngineDeadError("the server is shutting down")
        first = request.media[0].content_hash.hex() if request.media else ""
        salt = f"{request.adapter}\n{request.cache_salt}{first}"
        hashes = prompt_hashes(request.prompt_token_ids, salt)
        stream = self.replicas.generate(encode(request), hashes)
        self._replica_of[request.request_id] = ""
        is_finished, offset, is_first = False, 0.0, True
        try:
            async for data in _guarded(stream, request.request_id):
                match decode_record(data):
                    case Accepted(replica, moment):
                        self._replica_of[request.request_id] = replica
                        offset = self.clock() - moment
                    case Output(output):
                        self._counts.add(output, is_first=is_first)
                        is_finished, is_first = output.finished, False
                        yield _on_own_clock(output, request.arrival_time, offset)
                    case Failed() as failed:
                        is_finished = True
                        raise failed.error()
            if not is_finished:
                is_finished = True
                raise EngineDeadError("the replica has ended the stream too early")
        finally:
            self._replica_of.pop(request.request_id, None)
            if not is_finished:
                with suppress(Exception):  # the replica may be gone
                    stream.cancel()


async def _guarded(stream: Stream, request_id: str) -> AsyncIterator[bytes]:
    """The records of a stream. Raises `EngineDeadError` for whatever ends it."""
    try:
        async for data in stream:
            yield data
    except Exception as error:
        logger.warning("request %s has lost its replica: %s", request_id, error)
        raise EngineDeadError("the replica of the request has died") from error


def _on_own_clock(output: RequestOutput, arrival: float, offset: float) -> RequestOutput:
    """The output with the times of its replica as times of this process."""
    times = output.timings
    timings = RequestTimings(
        arrival,
        None if times.scheduled is None else times.scheduled + offset,
        None if times.first_token is None else times.first_token + offset,
        None if times.finished is None else times.finished + offset,
    )
    return msgspec.structs.replace(output, timings=timings)


def connect(
    replicas: Replicas, description: Description, folder: Path, capacity: float, **options: Any
) -> ReplicatedEngine:
    """The engine of an ingress, which may fill `capacity` replicas. `folder` gets the tokenizer."""
    for name, content in description.files.items():
        (folder / Path(name).name).write_bytes(content)
    model = description.model
    scaled = replace(
        model,
        max_num_seqs=max(1, round(model.max_num_seqs * capacity)),
        num_blocks=max(1, round(model.num_blocks * capacity)),
    )
    return ReplicatedEngine(replicas, scaled, Tokenizer.from_folder(folder), **options)
