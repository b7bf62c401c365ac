"""The plain answer of a route that does not generate."""

import msgspec
from fastapi import Response


def json_answer(body: msgspec.Struct) -> Response:
    """An answer with status 200 and this body."""
    return Response(msgspec.json.encode(body), media_type="application/json")
