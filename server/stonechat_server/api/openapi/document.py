"""The OpenAPI document. FastAPI knows the routes; the wire types know their own schemas."""

import re
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from stonechat_server.api.openapi.wire_types import (
    ANSWERS,
    EVENTS,
    EXAMPLES,
    IMAGE_EXAMPLES,
    PREFIXES,
    REQUESTS,
)

REF = "#/components/schemas/{name}"
PYDANTIC_REF = REF.format(name="{model}")

Schema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
"""The ways to send a key. A request needs one of them."""
DESCRIPTION = """\
A local server behind OpenAI's, Anthropic's and Ollama's endpoints. Fields that are not described
here are accepted, and the header `X-Ignored-Params` of the answer names them.
"""
TAGS = {
    "Chat completions": "Continue a conversation.",
    "Responses": "Continue a conversation, in OpenAI's newer shape.",
    "Messages": "Continue a conversation, in Anthropic's shape.",
    "Completions": "Continue a text.",
    "Ollama": "The same, and what is served, in Ollama's shapes.",
    "Embeddings": "Turn texts into vectors.",
    "Reranking": "Score how well documents answer a question.",
    "Audio": "Turn speech into text.",
    "Files": "Keep files of requests and of results.",
    "Batches": "Run a file of requests behind all others.",
    "Tokens": "Text to token ids and back, and the prompt that a conversation becomes.",
    "Models": "What is served.",
    "Health": "Whether it is served, and how it goes.",
}
"""What the tags of the routes mean, in the order in which they are shown."""
NAME_LIST = {"schema": {"type": "string"}}
HEADERS = {
    "X-Ignored-Params": {"description": "Fields of the request that changed nothing"} | NAME_LIST,
    "X-Unenforced-Schema": {"description": "What is not enforced of tools' schemas"} | NAME_LIST,
}
GENERATION_ERRORS = (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
"""The statuses of the errors that an endpoint which generates may answer with."""


def openapi_document(app: FastAPI, *, needs_key: bool) -> Schema:
    """Build the whole document. `needs_key` says whether requests must carry a key."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        routes=app.routes,
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # this server answers 400 instead
            if needs_key and operation["tags"] != ["Health"]:
                operation["security"] = [{name: []} for name in KEY_SCHEMES]
    components = document.setdefault("components", {})
    components["schemas"] = schemas()
    if needs_key:
        components["securitySchemes"] = KEY_SCHEMES
    return document


def schemas() -> dict[str, Schema]:
    """The schemas of all wire types by name. No two types share a name."""
    _, requests = models_json_schema(
        [(request, "validation") for request in REQUESTS], ref_template=PYDANTIC_REF
    )
    events, answers = msgspec.json.schema_components([*ANSWERS, *EVENTS.values()], ref_template=REF)
    named_events = dict(zip(EVENTS, events[len(ANSWERS) :], strict=True))
    request_schemas = _readable(requests["$defs"])
    answer_schemas = _readable(answers | named_events)
    names = {name: f"{name}Input" for name in request_schemas.keys() & answer_schemas.keys()}
    return _renamed(request_schemas, names) | answer_schemas


def _readable(schemas: dict[str, Schema]) -> dict[str, Schema]:
    """Shorten the names that types get with their modules if they share a class name."""
    names = {}
    for name in schemas:
        modules = re.split(r"__|\.", name)
        if len(modules) > 1:
            names[name] = PREFIXES[modules[1]] + modules[-1]
    return _renamed(schemas, names)


def _renamed(schemas: dict[str, Schema], names: dict[str, str]) -> dict[str, Schema]:
    """Rename schemas, and what refers to them."""
    references = {REF.format(name=old): REF.format(name=new) for old, new in names.items()}

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rename(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rename(item) for item in value]
        return references.get(value, value) if isinstance(value, str) else value

    renamed = {names.get(name, name): rename(schema) for name, schema in schemas.items()}
    assert len(renamed) == len(schemas), "two schemas got the same name"
    return renamed


def json_body(*names: str) -> dict[str, Any]:
    """The `content` entry of a JSON body with one of the named schemas."""
    references = [{"$ref": REF.format(name=name)} for name in names]
    schema = references[0] if len(names) == 1 else {"anyOf": references}
    return {"application/json": {"schema": schema}}


def request_body(*names: str) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body has one of the named schemas, with examples."""
    content = json_body(*names)
    bodies = {"text": EXAMPLES[names[0]]}
    if names[0] in IMAGE_EXAMPLES:
        bodies["an image, for a model that sees"] = IMAGE_EXAMPLES[names[0]]
    examples = {name: {"value": body} for name, body in bodies.items()}
    content["application/json"]["examples"] = examples
    return {"requestBody": {"required": True, "content": content}}


def errors(*statuses: int, name: str = "ErrorResponse", other: str | None = None) -> Responses:
    """The `responses` entries of error answers with these statuses, of one or of two shapes."""
    content = json_body(*filter(None, (name, other)))
    return {status: {"description": "Error", "content": content} for status in statuses}


def answered(*names: str, what: str = "", error: str = "ErrorResponse") -> Responses:
    """The `responses` of a route that works on a body, and answers with one of the named schemas.

    `what` describes an answer that has `HEADERS`.
    """
    answer: dict[str, Any] = {"content": json_body(*names)}
    if what:
        answer |= {"description": what, "headers": HEADERS}
    return {200: answer, **errors(*GENERATION_ERRORS, name=error)}


def generated(
    answer: str,
    event: str,
    end: str = ", then `[DONE]`",
    media_type: str = "text/event-stream",
    **names: str,
) -> Responses:
    """The `responses` of a route that generates: an answer, or a stream of the named events."""
    stream = {"schema": {}, "x-event-schema": {"$ref": REF.format(name=event)}}
    return {
        200: {
            "description": f"The answer; with `stream`, events whose data are `{event}`{end}",
            "headers": HEADERS,
            "content": {
                **json_body(answer),
                media_type: stream,  # `schema` would be that of the whole stream
            },
        },
        **errors(*GENERATION_ERRORS, **names),
    }
