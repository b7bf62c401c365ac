"""The body of an error in Ollama's shape, and the requests that get it."""

import msgspec
from starlette.types import Scope

PREFIX, OTHER = "/api/", "/api/v1"
"""What Ollama's paths begin with, and those of OpenAI's clients with a wrong base URL."""


class OllamaError(msgspec.Struct):
    """An error, in an answer or as the last line of a stream."""

    error: str


def is_for_ollama(scope: Scope) -> bool:
    """Whether a request is for Ollama's API."""
    path: str = scope["path"]
    return path.startswith(PREFIX) and not path.startswith(OTHER)
