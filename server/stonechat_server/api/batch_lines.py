"""Answers the request of a line of a batch, on the way that a request over HTTP takes."""

import asyncio
import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from starlette.types import Message

from stonechat_server.access.auth import Identity
from stonechat_server.api import generation, responses
from stonechat_server.api.shared.generate import generate
from stonechat_server.batches_api.lines import Answered
from stonechat_server.errors import server_error, to_api_error
from stonechat_server.observability.access_log import new_request_id
from stonechat_server.serving.endpoint import Endpoint

ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        *(generation.CHAT, generation.COMPLETIONS, generation.EMBEDDINGS, generation.RERANK),
        responses.ENDPOINT,
    )
}
RETRIED = (429, 503)
"""Statuses after which a request is tried again, if the answer says when."""

log = logging.getLogger("stonechat")


async def answer_line(app: FastAPI, path: str, body: bytes, identity: Identity) -> Answered:
    """Answer a body that is for the endpoint of that path.

    It is read, prepared, admitted, limited and recorded as a client's request is; only the key is
    known already, and no line of the access log is written.
    """
    request = _request(app, path, body)
    request_id: str = request.state.request_id
    headers: Mapping[str, str] = {}
    try:
        response = await generate(request, ENDPOINTS[path], identity)
        status, content, headers = response.status_code, bytes(response.body), response.headers
    except Exception as error:
        known = to_api_error(error)
        if known is None:
            log.exception("request %s of a batch failed", request_id)
            known = server_error()
        failed = known.response()
        status, content, headers = failed.status_code, bytes(failed.body), failed.headers
    finally:
        for end in reversed(request.state.at_end):
            end()
    return Answered(status, request_id, content, _retry_after(status, headers))


def _retry_after(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds until the request is tried again; None if its answer is final."""
    seconds = headers.get("retry-after") if status in RETRIED else None
    return None if seconds is None else float(seconds)


def _request(app: FastAPI, path: str, body: bytes) -> Request:
    """A request as the server makes it of bytes that came over a connection that stays open."""
    pieces: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if pieces:
            return pieces.pop()
        disconnect: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await disconnect

    scope = {
        "type": "http",
        "app": app,
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-length", str(len(body)).encode())],
        "client": None,
        "state": {"request_id": new_request_id(), "log_fields": {}, "at_end": []},
    }
    return Request(scope, receive)
