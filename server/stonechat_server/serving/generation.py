"""Runs one request in the engine: admits it, yields its chunks and records it at its end."""

import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from stonechat_models import GRAMMAR_FAILED, GenerateRequest
from stonechat_server.admission.deadline import HEADER as TIMEOUT_HEADER
from stonechat_server.admission.deadline import Deadline, request_timeout
from stonechat_server.admission.records import FinishedRequest, expected_cost
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.errors import APIError, server_error, to_api_error
from stonechat_server.observability.metrics import TokenClock
from stonechat_server.schema.responses import ChatCompletionChunk
from stonechat_server.streaming.chunks import ChunkBuilder

if TYPE_CHECKING:
    from starlette.requests import Request as HTTPRequest

    from stonechat_models import RequestOutput
    from stonechat_server.access.auth import Identity
    from stonechat_server.admission.fair_queue import Admission
    from stonechat_server.request.prepare import PreparedRequest
    from stonechat_server.schema.requests import ChatCompletionRequest
    from stonechat_server.serving.services import Services

log = logging.getLogger("stonechat")

CLIENT_GONE = 499
"""The status that is recorded if the client disconnects. No client ever receives it."""


@dataclass(slots=True)
class Generation:
    """One request. `chunks()` may run once; closing it aborts the request in the engine."""

    services: "Services"
    identity: "Identity"
    request: "ChatCompletionRequest"
    http_request: "HTTPRequest"
    prepared: "PreparedRequest"
    builder: ChunkBuilder
    endpoint: str = "/v1/chat/completions"
    started: float = field(default_factory=time.monotonic)
    admission: "Admission | None" = field(default=None, init=False)
    texts: dict[int, list[str]] = field(default_factory=dict, init=False)
    """The text of each choice, if the ledger keeps it."""
    status: int = field(default=CLIENT_GONE, init=False)
    error: APIError | None = field(default=None, init=False)

    async def chunks(self) -> AsyncGenerator[list[ChatCompletionChunk], None]:
        """Yield the chunks: one list per output of the engine.

        Raises `APIError` or an engine error, before the first chunk or later.
        """
        services, deadline = self.services, self._deadline()
        clock = TokenClock(services.metrics.observe_gap)
        try:
            services.lifecycle.enter(deadline)
            self.admission = await deadline.wait(self._admit())
            async with aclosing(self._generate()) as outputs:
                while (output := await deadline.wait(anext(outputs, None))) is not None:
                    clock.add(output, time.monotonic())
                    self._count(self.admission, output)
                    yield self.builder.add(output)
                    if self.builder.num_finished == len(self.builder.choices):
                        break  # closing the outputs ends what the engine still runs
                    while self.builder.ended_early:
                        index = self.builder.ended_early.pop()
                        services.engine.end_choice(self.builder.head.id, index)
            self.status = 200
        except Exception as error:
            self._note_error(error)
            if self.error is not None and self.error is not error and self.error.status == 400:
                raise self.error from error
            raise
        finally:
            deadline.close()
            services.lifecycle.leave(deadline)
            if self.admission is not None:
                services.admission.leave(self.admission)
                self._record()

    def _deadline(self) -> Deadline:
        maximum = self.services.settings.request_timeout or None
        return Deadline(request_timeout(self.http_request.headers.get(TIMEOUT_HEADER), maximum))

    async def _admit(self) -> "Admission":
        params, request = self.prepared.params, self.request
        num_prompt_tokens = len(self.prepared.prompt_token_ids)
        room = self.services.engine.model.max_model_len - num_prompt_tokens
        is_limited = request.token_limit is not None
        return await self.services.admission.admit(
            self.identity.key,
            expected_cost(num_prompt_tokens, params.n, params.max_tokens or room, is_limited),
            tenant=self.identity.tenant,
            queue_timeout=self.services.settings.queue_timeout or None,
        )

    def _generate(self) -> "AsyncGenerator[RequestOutput, None]":
        request, salt = self.request, self.request.cache_salt or ""
        if self.services.settings.private_prefix_cache:
            salt = f"{self.identity.key.name}\n{salt}"
        outputs = self.services.engine.generate(
            GenerateRequest(
                request_id=self.builder.head.id,
                prompt_token_ids=self.prepared.prompt_token_ids,
                params=self.prepared.params,
                priority=self.identity.key.priority + max(0, request.priority or 0),
                cache_salt=salt,
                arrival_time=self.started,
                prediction_token_ids=self.prepared.prediction_token_ids,
            )
        )
        return cast("AsyncGenerator[RequestOutput, None]", outputs)

    def _count(self, admission: "Admission", output: "RequestOutput") -> None:
        """Count the tokens of an output, keep its text for the ledger, and log its error."""
        admission.num_used_tokens = admission.num_used_tokens or output.num_prompt_tokens
        for delta in output.deltas:
            admission.num_used_tokens += delta.num_tokens
            if self.services.settings.ledger_text:
                self.texts.setdefault(delta.index, []).append(delta.text)
        if output.error is not None:
            level = logging.INFO if output.error.startswith(GRAMMAR_FAILED) else logging.ERROR
            log.log(level, "request %s failed in the engine: %s", self._request_id, output.error)

    def _note_error(self, error: Exception) -> None:
        self.error = to_api_error(error) or server_error()
        self.status = self.error.status
        if self.error.code == "invalid_grammar":
            self.error.param = self.prepared.grammar_param
        if isinstance(error, RefusedError):
            self.services.metrics.refused(error.reason)

    @property
    def _request_id(self) -> str:
        return cast(str, self.http_request.state.request_id)

    def _record(self) -> None:
        builder, output = self.builder, self.builder.output
        keeps_text = self.services.settings.ledger_text
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
            num_completion_tokens=sum([choice.num_tokens for choice in builder.choices]),
            finish_reasons=tuple(
                [c.finish_reason_name or unfinished_reason for c in builder.choices]
            ),
            timings=output.timings if output else None,
            created=time.time() - (finished - self.started),
            started=self.started,
            finished=finished,
            traceparent=self.http_request.headers.get("traceparent"),
            prompt=self._prompt() if keeps_text else None,
            completion=self._completion() if keeps_text else None,
        )
        self.http_request.state.log_fields.update(_log_fields(record))
        for sink in self.services.sinks:
            try:
                sink(record)
            except Exception:  # the answer is still good
                log.exception("request %s could not be recorded", self._request_id)
                self.services.metrics.record_lost()

    def _prompt(self) -> str:
        return self.request.model_dump_json(include={"messages"}, exclude_unset=True)

    def _completion(self) -> str:
        """A JSON list of the choices' texts."""
        return json.dumps(["".join(self.texts[index]) for index in sorted(self.texts)])


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
