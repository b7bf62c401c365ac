"""Runs one request in the engine: admits it, yields its chunks and records it at its end."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from stonechat_models import GRAMMAR_FAILED, GenerateRequest
from stonechat_server.admission.deadline import HEADER as TIMEOUT_HEADER
from stonechat_server.admission.records import FinishedRequest, Ticket, expected_cost
from stonechat_server.errors import APIError, server_error, to_api_error
from stonechat_server.schema.responses import ChatCompletionChunk
from stonechat_server.streaming.chunks import ChunkBuilder

if TYPE_CHECKING:
    from starlette.requests import Request as HTTPRequest

    from stonechat_models import RequestOutput
    from stonechat_server.access.auth import Identity
    from stonechat_server.request.prepare import PreparedRequest
    from stonechat_server.schema.requests import ChatCompletionRequest
    from stonechat_server.serving.gate import Run
    from stonechat_server.serving.services import Services

log = logging.getLogger("stonechat")

CLIENT_GONE = 499
"""The status that is recorded if the client disconnects. No client ever receives it."""


@dataclass(slots=True)
class Generation:
    """One request. `chunks()` may run once; closing it aborts the request in the engine."""

    state: "Services"
    identity: "Identity"
    request: "ChatCompletionRequest"
    http_request: "HTTPRequest"
    prepared: "PreparedRequest"
    builder: ChunkBuilder
    endpoint: str = "/v1/chat/completions"
    started: float = field(default_factory=time.monotonic)
    run: "Run | None" = field(default=None, init=False)
    status: int = field(default=CLIENT_GONE, init=False)
    error: APIError | None = field(default=None, init=False)

    async def chunks(self) -> AsyncGenerator[list[ChatCompletionChunk], None]:
        """Yield the chunks: one list per output of the engine.

        Raises `APIError` or an engine error, before the first chunk or later.
        """
        try:
            async with (
                self.state.operations.admit(self._ticket()) as run,
                aclosing(run.limit(self._outputs())) as outputs,
            ):
                self.run = run
                async for output in outputs:
                    yield self._add(output)
                self.status = 200
        except Exception as error:
            self.error = to_api_error(error) or server_error()
            self.status = self.error.status
            if self.error.code == "invalid_grammar":
                self.error.param = self.prepared.grammar_param
            if self.error is not error and self.error.status == 400:
                raise self.error from error
            raise
        finally:
            if self.run is not None:
                self._record(self.run)

    def _ticket(self) -> Ticket:
        params, request = self.prepared.params, self.request
        room = self.state.engine.model.max_model_len - len(self.prepared.prompt_token_ids)
        is_limited = (request.max_completion_tokens or request.max_tokens) is not None
        cost = expected_cost(
            len(self.prepared.prompt_token_ids), params.n, params.max_tokens or room, is_limited
        )
        return Ticket(self.identity, cost, self.http_request.headers.get(TIMEOUT_HEADER))

    @property
    def _request_id(self) -> str:
        return cast(str, self.http_request.state.request_id)

    def _outputs(self) -> "AsyncGenerator[RequestOutput, None]":
        request = self.request
        outputs = self.state.engine.generate(
            GenerateRequest(
                request_id=self.builder.head.id,
                prompt_token_ids=self.prepared.prompt_token_ids,
                params=self.prepared.params,
                priority=self.identity.key.priority + max(0, request.priority or 0),
                cache_salt=self._cache_salt(),
                arrival_time=self.started,
                prediction_token_ids=self.prepared.prediction_token_ids,
            )
        )
        return cast("AsyncGenerator[RequestOutput, None]", outputs)

    def _cache_salt(self) -> str:
        salt = self.request.cache_salt or ""
        if self.state.settings.private_prefix_cache:
            salt = f"{self.identity.key.name}\n{salt}"
        return salt

    def _add(self, output: "RequestOutput") -> list[ChatCompletionChunk]:
        if output.error is not None:
            level = logging.INFO if output.error.startswith(GRAMMAR_FAILED) else logging.ERROR
            log.log(level, "request %s failed in the engine: %s", self._request_id, output.error)
        return self.builder.add(output)

    def _prompt(self) -> str:
        return self.request.model_dump_json(include={"messages"}, exclude_unset=True)

    def _record(self, run: "Run") -> None:
        builder, output = self.builder, self.builder.output
        unfinished_reason = "abort" if self.status == CLIENT_GONE else "error"
        finished = time.monotonic()
        record = FinishedRequest(
            request_id=self._request_id,
            endpoint=self.endpoint,
            key=self.identity.key.name,
            user=self.request.user,
            safety_identifier=self.request.safety_identifier,
            model=builder.head.model,
            status=self.status,
            error_code=self.error.code if self.error else None,
            stream=bool(self.request.stream),
            num_prompt_tokens=len(self.prepared.prompt_token_ids),
            num_cached_tokens=output.num_cached_tokens if output else 0,
            num_completion_tokens=sum(choice.num_tokens for choice in builder.choices),
            finish_reasons=tuple(
                c.finish_reason_name or unfinished_reason for c in builder.choices
            ),
            timings=output.timings if output else None,
            created=time.time() - (finished - self.started),
            started=self.started,
            finished=finished,
            traceparent=self.http_request.headers.get("traceparent"),
            prompt=self._prompt() if self.state.settings.ledger_text else None,
            completion=run.completion(),
        )
        self.http_request.state.log_fields.update(_log_fields(record))
        for sink in self.state.sinks:
            try:
                sink(record)
            except Exception:  # the answer is still good
                log.exception("request %s could not be recorded", self._request_id)
                self.state.operations.metrics.record_lost()


def _log_fields(record: FinishedRequest) -> dict[str, object]:
    """The fields that a request adds to its line in the access log."""
    fields: dict[str, object] = {
        "model": record.model,
        "stream": record.stream,
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_cached_tokens,
        "completion_tokens": record.num_completion_tokens,
        "finish": ",".join(record.finish_reasons),
    }
    first_token = record.timings.first_token if record.timings else None
    if first_token is not None:
        fields["first_token_milliseconds"] = round((first_token - record.started) * 1000, 1)
    if record.error_code is not None:
        fields |= {"result": record.status, "error": record.error_code}
    return fields
