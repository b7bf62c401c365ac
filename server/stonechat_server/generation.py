"""One request's run through the engine: admitted, streamed as chunks, and recorded at its end."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from stonechat_models import GenerateRequest
from stonechat_server.admission import FinishedRequest
from stonechat_server.completion import ChunkBuilder
from stonechat_server.errors import server_error, to_api_error
from stonechat_server.schema.responses import ChatCompletionChunk

if TYPE_CHECKING:
    from stonechat_models import RequestOutput
    from stonechat_server.auth import Identity
    from stonechat_server.prepare import Plan
    from stonechat_server.schema.requests import ChatCompletionRequest
    from stonechat_server.state import ServerState

log = logging.getLogger("stonechat")

CLIENT_GONE = 499
"""The status recorded (it is never sent) when the client went away."""


@dataclass(slots=True)
class Generation:
    """`chunks()` may be run once; closing it aborts the request in the engine."""

    state: "ServerState"
    identity: "Identity"
    request: "ChatCompletionRequest"
    request_id: str
    plan: "Plan"
    builder: ChunkBuilder
    started: float = field(default_factory=time.monotonic)
    status: int = field(default=CLIENT_GONE, init=False)

    async def chunks(self) -> AsyncGenerator[list[ChatCompletionChunk], None]:
        """The chunks, those of a step together.

        Raises `APIError`, or an engine error, before the first chunk or after some.
        """
        try:
            async with (
                self.state.admission.admit(self.identity, self.plan),
                aclosing(self._outputs()) as outputs,
            ):
                async for output in outputs:
                    yield self._add(output)
                self.status = 200
        except Exception as error:
            self.status = (to_api_error(error) or server_error()).status
            raise
        finally:
            self._record()

    def _outputs(self) -> "AsyncGenerator[RequestOutput, None]":
        request = self.request
        outputs = self.state.engine.generate(
            GenerateRequest(
                request_id=self.builder.head.id,
                prompt_token_ids=self.plan.prompt_token_ids,
                params=self.plan.params,
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
                arrival_time=self.started,
            )
        )
        return cast("AsyncGenerator[RequestOutput, None]", outputs)

    def _add(self, output: "RequestOutput") -> list[ChatCompletionChunk]:
        if output.error is not None:
            log.error("request %s failed in the engine: %s", self.request_id, output.error)
        return self.builder.add(output)

    def _record(self) -> None:
        builder, output = self.builder, self.builder.output
        unfinished = "abort" if self.status == CLIENT_GONE else "error"
        record = FinishedRequest(
            request_id=self.request_id,
            key_id=self.identity.key_id,
            user=self.request.safety_identifier or self.request.user,
            model=builder.head.model,
            status=self.status,
            stream=bool(self.request.stream),
            num_prompt_tokens=len(self.plan.prompt_token_ids),
            num_cached_tokens=output.num_cached_tokens if output else 0,
            num_completion_tokens=sum(choice.num_tokens for choice in builder.choices),
            finish_reasons=tuple(c.finish_reason or unfinished for c in builder.choices),
            timings=output.timings if output else None,
            started=self.started,
            finished=time.monotonic(),
        )
        for sink in self.state.sinks:
            sink(record)
