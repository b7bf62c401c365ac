"""Runs one request in the engine: admits it, yields its events and records it at its end."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from stonechat_models import GRAMMAR_FAILED, GenerateRequest, RequestOutput
from stonechat_server.access.keys import BATCH_PRIORITY
from stonechat_server.admission.fair_queue import Admission, Cost
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError, server_error, to_api_error
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.serving.endpoint import Received, prompt_text
from stonechat_server.serving.lifecycle import new_deadline
from stonechat_server.serving.merging import merged
from stonechat_server.streaming.answer_writer import AnswerWriter, Event

log = logging.getLogger("stonechat")

EXPECTED_COMPLETION_TOKENS = 512
"""Expected tokens of each choice if the client sets no limit."""
CLIENT_GONE = 499
"""The status that is recorded if the client disconnects. No client ever receives it."""


@dataclass(slots=True)
class Generation:
    """One request. `events()` may run once; closing it aborts the request in the engine."""

    received: Received
    model: ServedModel
    writer: AnswerWriter
    started: float
    """In `time.monotonic()` seconds."""
    last_outputs: dict[tuple[str, int], float] = field(default_factory=dict, init=False)
    """When the last output with tokens of each choice came."""
    admission: Admission | None = field(default=None, init=False)
    submitted: set[str] = field(default_factory=set, init=False)
    """The ids of the texts that count without an output: the engine has them in its batches."""
    texts: dict[tuple[str, int], list[str]] = field(default_factory=dict, init=False)
    """The text of each choice, if the ledger keeps it."""
    status: int = field(default=CLIENT_GONE, init=False)
    error: APIError | None = field(default=None, init=False)

    async def events(self) -> AsyncGenerator[list[Event], None]:
        """Yield the events: one list per output of the engine.

        Raises `APIError` or an engine error, before the first event or later.
        """
        received, services, writer = self.received, self.received.services, self.writer
        deadline = received.deadline or new_deadline(
            received.http_request,
            received.identity,
            services.settings.request_timeout,
            self.started,
        )
        reader = writer.reader
        try:
            services.lifecycle.enter(deadline)
            self.admission = await deadline.wait(self._admit())
            async with aclosing(self._generate()) as outputs:
                while (output := await deadline.wait(anext(outputs, None))) is not None:
                    self._count(self.admission, output)
                    if output.prompt_logprobs is None:
                        events = writer.add(output)
                    else:  # those of a long prompt take long
                        events = await deadline.wait(asyncio.to_thread(writer.add, output))
                    yield events
                    if reader.num_finished == len(reader.choices):
                        break  # closing the outputs ends what the engine still runs
                    while reader.ended_early:
                        self._end_choice(reader.ended_early.pop())
            if reader.num_finished < len(reader.choices):
                raise server_error()  # the engine has broken off
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
                self.model.admission.leave(self.admission)
                self._record()
            # A traceback may keep this object: its own error refers to it.
            self.error, self.received.call.prepared = None, ()

    def _end_choice(self, index: int) -> None:
        prompt, index = divmod(index, self.received.call.prepared[0].params.n)
        self.model.engine.end_choice(self.writer.reader.prompt_ids[prompt], index)

    async def _admit(self) -> Admission:
        received, max_model_len = self.received, self.model.engine.model.max_model_len
        is_limited = received.call.request.token_limit is not None
        costs = []
        for prepared in received.call.prepared:
            num_prompt_tokens, params = len(prepared.prompt_token_ids), prepared.params
            num_expected = max_model_len - num_prompt_tokens
            if params.max_tokens is not None:  # of a transcript of many windows, it may be more
                num_expected = min(num_expected, params.max_tokens)
            if not is_limited:
                num_expected = min(num_expected, EXPECTED_COMPLETION_TOKENS)
            num_tokens = num_prompt_tokens + params.n * num_expected
            costs.append(Cost(num_tokens, num_tokens, params.n))
        admission, key = self.model.admission, received.identity.key
        several = len(costs) > 1  # not all of them may run at a time
        is_patient = key.priority >= BATCH_PRIORITY
        return await admission.admit(
            key,
            admission.limits.cost_of(costs) if several else costs[0],
            tenant=received.identity.tenant,
            queue_timeout=None if is_patient else received.services.settings.queue_timeout or None,
        )

    def _generate(self) -> AsyncGenerator[RequestOutput, None]:
        prompts = list(zip(self.writer.reader.prompt_ids, self.received.call.prepared, strict=True))
        if len(prompts) == 1:
            request = self._engine_request(*prompts[0], self.started)
            outputs = self.model.engine.generate(request)
            return cast(AsyncGenerator[RequestOutput, None], outputs)
        if not self.received.endpoint.generates:  # texts of similar length share a batch
            prompts.sort(key=lambda prompt: len(prompt[1].prompt_token_ids))
        assert self.admission is not None
        num_at_once = self.admission.cost.num_sequences // self.received.call.prepared[0].params.n
        return merged([self._submit(*prompt) for prompt in prompts], num_at_once)

    async def _submit(
        self, prompt_id: str, prepared: PreparedRequest
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run one prompt of several. It arrives when its turn comes, behind what waits then."""
        assert self.admission is not None
        request = self._engine_request(prompt_id, prepared, time.monotonic())
        if not self.received.endpoint.generates:  # its batch is computed, whoever waits for it
            self.submitted.add(prompt_id)
            self.admission.num_used_tokens += len(prepared.prompt_token_ids)
        stream = cast(AsyncGenerator[RequestOutput, None], self.model.engine.generate(request))
        async with aclosing(stream) as outputs:
            async for output in outputs:
                yield output

    def _engine_request(
        self, prompt_id: str, prepared: PreparedRequest, arrival: float
    ) -> GenerateRequest:
        request, key = self.received.call.request, self.received.identity.key
        salt = request.cache_salt or ""
        if self.received.services.settings.private_prefix_cache:
            salt = f"{key.name}\n{salt}"
        return GenerateRequest(
            request_id=prompt_id,
            prompt_token_ids=prepared.prompt_token_ids,
            params=prepared.params,
            priority=key.priority + max(0, request.priority or 0),
            cache_salt=salt,
            arrival_time=arrival,
            prediction_token_ids=prepared.prediction_token_ids,
            embedding=prepared.embedding,
            adapter=self.model.adapter,
            media=prepared.media,
            speech=prepared.speech,
        )

    def _count(self, admission: Admission, output: RequestOutput) -> None:
        """Count the tokens of an output and the time since the choice's last one, keep its text for
        the ledger, and log its error."""
        services, now = self.received.services, time.monotonic()
        gaps = services.metrics.gaps[self.model.metrics_name]
        is_first = output.request_id not in self.writer.reader.outputs
        if is_first and output.request_id not in self.submitted:
            admission.num_used_tokens += output.num_prompt_tokens
        for delta in output.deltas:
            choice = output.request_id, delta.index
            if delta.num_tokens:
                admission.num_used_tokens += delta.num_tokens
                last = self.last_outputs.get(choice)
                if last is not None:
                    gaps.observe(now - last)
                self.last_outputs[choice] = now
            if services.settings.ledger_text:
                self.texts.setdefault(choice, []).append(delta.text)
        if output.error is not None:
            level = logging.INFO if output.error.startswith(GRAMMAR_FAILED) else logging.ERROR
            request_id = self.received.http_request.state.request_id
            log.log(level, "request %s failed in the engine: %s", request_id, output.error)

    def _note_error(self, error: Exception) -> None:
        received = self.received
        self.error = received.call.named(to_api_error(error) or server_error())
        self.status = self.error.status
        if self.error.code == "invalid_grammar":
            param = self.received.call.prepared[0].grammar_param
            self.error.param = None if param is None else received.call.own_name(param)
        if isinstance(error, RefusedError):
            metrics, name = received.services.metrics, self.model.metrics_name
            metrics.refused(error.reason, received.endpoint.path, name)

    def _record(self) -> None:
        received, reader, usage = self.received, self.writer.reader, self.writer.reader.usage()
        request, state = received.call.request, received.http_request.state
        prompts = received.call.prepared
        output = next(iter(reader.outputs.values()), None)
        # A prompt that waits has no output.
        begun = reader.outputs.keys() | reader.prompt_ids[:1] | self.submitted
        keeps_text = received.services.settings.ledger_text
        finished = time.monotonic()
        record = FinishedRequest(
            request_id=state.request_id,
            endpoint=received.endpoint.path,
            key=received.identity.key.name,
            user=request.user,
            safety_identifier=request.safety_identifier,
            model=self.writer.head.model,
            metrics_model=self.model.metrics_name,
            status=self.status,
            error_code=self.error.code if self.error else None,
            stream=bool(request.stream),
            num_prompt_tokens=sum(
                [
                    len(prepared.prompt_token_ids)
                    for prompt_id, prepared in zip(reader.prompt_ids, prompts, strict=True)
                    if prompt_id in begun
                ]
            ),
            num_cached_tokens=usage.num_cached,
            num_completion_tokens=usage.num_completion,
            finish_reasons=self._finish_reasons(),
            num_choices=prompts[0].params.n,
            timings=output.timings if output else None,
            created=time.time() - (finished - self.started),
            started=self.started,
            finished=finished,
            traceparent=received.http_request.headers.get("traceparent"),
            prompt=prompt_text(received.call, received.endpoint.prompt_fields)
            if keeps_text
            else None,
            completion=self._completion() if keeps_text else None,
        )
        state.log_fields.update(_log_fields(record))
        for sink in received.services.sinks:
            try:
                sink(record)
            except Exception:  # the answer is still good
                log.exception("request %s could not be recorded", state.request_id)
                received.services.metrics.record_lost()

    def _finish_reasons(self) -> tuple[str, ...]:
        unfinished_reason = "abort" if self.status == CLIENT_GONE else "error"
        if not self.received.endpoint.generates:
            return ("stop" if self.status == 200 else unfinished_reason,)
        choices = self.writer.reader.choices
        return tuple([choice.finish_reason_name or unfinished_reason for choice in choices])

    def _completion(self) -> str:
        """A JSON list of the choices' texts."""
        ids = self.writer.reader.prompt_ids
        keys = sorted(self.texts, key=lambda key: (ids.index(key[0]), key[1]))
        return json.dumps(["".join(self.texts[key]) for key in keys])


def _log_fields(record: FinishedRequest) -> dict[str, object]:
    """The fields that a request adds to its line in the access log."""
    several = len(record.finish_reasons) > 1  # many are counted, not listed
    reasons = record.listed_reasons if several else record.finish_reasons
    fields: dict[str, object] = {
        "model": record.model,
        "stream": record.stream,
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_cached_tokens,
        "completion_tokens": record.num_completion_tokens,
        "finish": ",".join(reasons),
    }
    first_token = record.timings.first_token if record.timings else None
    if first_token is not None:
        fields["first_token_milliseconds"] = round((first_token - record.started) * 1000, 1)
    if record.error_code is not None:
        fields |= {"result": record.status, "error": record.error_code}
    return fields
