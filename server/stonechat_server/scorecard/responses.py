"""Checks of the Responses API, and of the responses that it stores."""

from typing import Any, Final

from stonechat_server.scorecard.outcome import (
    HONOURED,
    Finding,
    check,
    error_shape,
    ignored,
    wrong,
)
from stonechat_server.scorecard.server import Answer, Json, NoAnswerError, Server, taken

GROUP: Final = "responses"
FACT = "The ferry to the island leaves at noon. " * 10
QUESTION = "When does it leave?"


async def _ask(server: Server, text: str = QUESTION, **fields: Any) -> Answer:
    body = {"model": server.model, "input": text, "temperature": 0, "max_output_tokens": 16}
    return await server.send("POST", "/responses", body | fields)


async def _response(server: Server, text: str = QUESTION, **fields: Any) -> Json:
    """A plain answer. Raises NoAnswerError for another status than 200."""
    answer = await _ask(server, text, **fields)
    if answer.status != 200:
        raise NoAnswerError(f"status {answer.status}: {answer.text[:120]}")
    return answer.json()


def _text(response: Json) -> str:
    parts = [part for item in response["output"] for part in item.get("content") or ()]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


def _num_input_tokens(response: Json) -> int:
    return int(response["usage"]["input_tokens"])


@check(GROUP, "shape of a response", part=GROUP)
async def shape(server: Server) -> Finding:
    """The keys that clients rely on are there."""
    answer = taken(await _ask(server))
    response = answer.json()
    names = ("id", "object", "created_at", "model", "output", "status", "usage")
    missing = [name for name in names if name not in response]
    if missing:
        return wrong(f"missing: {', '.join(missing)}")
    if response["object"] != "response":
        return wrong(f"object is {response['object']!r}")
    return HONOURED if _text(response) else wrong("there is no text")


@check(GROUP, "stream of a response", part=GROUP)
async def stream(server: Server) -> Finding:
    """The pieces add up to the answer of the last event, which is that of a plain request."""
    plain, answer = await _response(server), taken(await _ask(server, stream=True))
    events = answer.chunks()
    if events[0]["type"] != "response.created":
        return wrong(f"the first event is {events[0]['type']}")
    last = events[-1]
    if last["type"] not in ("response.completed", "response.incomplete"):
        return wrong(f"the last event is {last['type']}")
    pieces = [one["delta"] for one in events if one["type"] == "response.output_text.delta"]
    if "".join(pieces) != _text(last["response"]):
        return wrong("the pieces do not add up to the answer")
    is_same = _text(last["response"]) == _text(plain)
    return HONOURED if is_same else wrong("the stream is not the plain answer")


@check(GROUP, "previous_response_id", part=GROUP)
async def previous(server: Server) -> Finding:
    """The prompt has the earlier turn."""
    first = await _response(server, FACT)
    answer = taken(await _ask(server, previous_response_id=first["id"]))
    more = _num_input_tokens(answer.json()) - _num_input_tokens(await _response(server))
    return HONOURED if more > 50 else ignored("the earlier turn adds nothing to the prompt")


@check(GROUP, "instructions of an earlier turn", part=GROUP)
async def instructions(server: Server) -> Finding:
    """They are not carried over."""
    first = await _response(server, "Hello.", instructions=FACT)
    answer = taken(await _ask(server, previous_response_id=first["id"]))
    is_shorter = _num_input_tokens(answer.json()) < _num_input_tokens(first)
    return HONOURED if is_shorter else wrong("they are in the prompt of the next turn")


@check(GROUP, "an unknown previous_response_id", part=GROUP)
async def unknown(server: Server) -> Finding:
    """It is an error, and not a conversation without its beginning."""
    return error_shape(await _ask(server, previous_response_id="resp_0123456789"), 400, 404)


@check(GROUP, "a stored response", part=GROUP)
async def stored(server: Server) -> Finding:
    """It can be fetched, and its input can be listed."""
    first = await _response(server)
    place = f"/responses/{first['id']}"
    answer = taken(await server.send("GET", place))
    if _text(answer.json()) != _text(first):
        return wrong("another answer comes")
    listed = taken(await server.send("GET", f"{place}/input_items"))
    [item] = listed.json()["data"]
    return HONOURED if item["content"][0]["text"] == QUESTION else wrong("other input is listed")


@check(GROUP, "a deleted response", part=GROUP)
async def deleted(server: Server) -> Finding:
    """It cannot be fetched any longer."""
    place = f"/responses/{(await _response(server))['id']}"
    taken(await server.send("DELETE", place))
    return error_shape(await server.send("GET", place), 404)


@check(GROUP, "store: false", part=GROUP)
async def not_stored(server: Server) -> Finding:
    """The answer cannot be fetched."""
    response = await _response(server, store=False)
    return error_shape(await server.send("GET", f"/responses/{response['id']}"), 404)
