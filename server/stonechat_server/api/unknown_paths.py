"""Explains a 404 or 405: what was asked for, what is near it, and what is served."""

import difflib
import re
from functools import cached_property
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from stonechat_server.errors import APIError

MAX_PATH_LENGTH = 100
"""The rest of a longer path is neither compared nor shown."""
MAX_METHOD_LENGTH = 20
CLOSE_ENOUGH = 0.8
"""The least similarity, from 0 to 1, of a path that is suggested."""

BASE_URL = (
    "The client's base URL is wrong: OpenAI's clients need one that ends in /v1, Anthropic's one "
    "without /v1."
)
NO_MANAGEMENT = (
    "Models are named when the server starts, as in `stonechat serve MODEL`; no request creates, "
    "copies, pushes or deletes one. GET /api/tags lists them."
)
MANAGEMENT = ("/api/create", "/api/copy", "/api/push", "/api/delete", "/api/blobs")
NO_MEDIA = "No audio, images or video are made here: the models write text."
NO_STORAGE = "No threads, conversations or chat completions are stored here."
NO_BACKGROUND = "An answer comes in its request: nothing runs in the background."
NO_COMPACTION = (
    "Conversations are not compacted here; with 'truncation' set to 'auto', the oldest items are "
    "left out where they leave too little room."
)
ONE_PIECE = "A file is uploaded in one piece, with POST /v1/files."
NO_CLASSES = "Classes are not served, nor hidden states; POST /v1/rerank and /v1/score give scores."
CHAT_INSTEAD = "That is another server's own API; here, use POST /v1/chat/completions."
COMPLETIONS_INSTEAD = "That is another server's own API; here, use POST /v1/completions."

NOTES = {
    **dict.fromkeys(MANAGEMENT, NO_MANAGEMENT),
    "/completion": COMPLETIONS_INSTEAD,
    "/generate": COMPLETIONS_INSTEAD,
    "/generate_stream": COMPLETIONS_INSTEAD,
    "/engines": COMPLETIONS_INSTEAD,
    "/complete": COMPLETIONS_INSTEAD,
    "/invocations": CHAT_INSTEAD,
    "/openai/deployments": CHAT_INSTEAD,
    "/v1beta": CHAT_INSTEAD,
    "/apply-template": "The prompt of a chat is made by POST /v1/chat/completions/render.",
    "/slots": "What runs now is counted by GET /metrics.",
    "/server_info": "The model is described by GET /v1/models.",
    "/get_model_info": "The model is described by GET /v1/models.",
    "/audio": NO_MEDIA,
    "/images": NO_MEDIA,
    "/videos": NO_MEDIA,
    "/realtime": NO_MEDIA,
    "/uploads": ONE_PIECE,
    "/assistants": NO_STORAGE,
    "/threads": NO_STORAGE,
    "/conversations": NO_STORAGE,
    "/vector_stores": NO_STORAGE,
    "/chat/completions": NO_STORAGE,
    "/responses": NO_BACKGROUND,
    "/responses/compact": NO_COMPACTION,
    "/messages/batches": NO_STORAGE,
    "/fine_tuning": "Models are not trained here.",
    "/moderations": "There is no moderation model here.",
    "/classify": NO_CLASSES,
    "/pooling": NO_CLASSES,
}
"""What to say of paths that clients of other servers ask for, with or without `/v1` before them.
The paths below such a path count too."""


class ServedPaths:
    """The operations in the OpenAPI document of `app`. Routes may be added until the first use."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    @cached_property
    def operations(self) -> dict[str, list[str]]:
        """The methods of each path."""
        document = get_openapi(title="", version="", routes=self._app.routes)
        return {path: [m.upper() for m in methods] for path, methods in document["paths"].items()}

    def explain(self, error: HTTPException, method: str, path: str) -> APIError:
        """The answer to a 404 or 405 of the router."""
        if error.status_code == 405:
            return self.not_allowed(method, path, (error.headers or {}).get("Allow", ""))
        return self.not_found(method, path)

    def not_found(self, method: str, path: str) -> APIError:
        """A 404 that names the nearest path and lists all of them."""
        tidy = _tidy(path)
        sentences = [f"{_shown(method, path)} is not served here."]
        known = _known(tidy)
        if known in MANAGEMENT:  # nothing near it helps
            return APIError(404, f"{sentences[0]} {NO_MANAGEMENT}", code="not_found")
        ending = self._ending(tidy)
        nearest = ending or self._nearest(tidy)
        if known is not None and not (nearest is not None and "/v1" + known in self.operations):
            sentences.append(NOTES[known])
        if nearest is not None:
            sentences.append(f"Did you mean {self._name(nearest)}?")
        if ending is not None:
            sentences.append(BASE_URL)
        served = ", ".join(map(self._name, self.operations))
        sentences.append(f"Served: {served}. GET /docs describes them.")
        return APIError(404, " ".join(sentences), code="not_found")

    def not_allowed(self, method: str, path: str, allow: str) -> APIError:
        """A 405 that names the methods of the path: those of `allow` for an undocumented path."""
        found = [m for served, m in self.operations.items() if _is_at(path, served)]
        methods = found[0] if found else allow.split(", ")
        if "GET" in methods and "HEAD" not in methods:  # it is answered wherever GET is
            methods = [*methods, "HEAD"]
        allowed = ", ".join(methods)
        tidy = _tidy(path).removeprefix("/v1")
        note = f" {NOTES[tidy]}" if tidy == "/responses/compact" else ""
        return APIError(
            405,
            f"{_shown(method, path)} is not allowed; allowed: {allowed}.{note}",
            code="method_not_allowed",
            headers={"Allow": allowed},
        )

    def _ending(self, path: str) -> str | None:
        """The served path below `/v1` that a client with a wrong base URL asks for.

        The base URL has something before its `/v1`, as in `/v1/v1/models`, or it is a whole path,
        as in `/v1/chat/completions/models`.
        """
        if path in self.operations:
            return None
        below_v1 = [served for served in self.operations if served.startswith("/v1/")]
        for served in sorted(below_v1, key=len, reverse=True):
            shorter = served.removeprefix("/v1")
            if path.endswith(served):
                return served
            if path.endswith(shorter) and self._leads_on(path.removesuffix(shorter)):
                return served
        return None

    def _leads_on(self, path: str) -> bool:
        """Whether this is a served path below `/v1`, or the beginning of one."""
        is_below = path.startswith("/v1/")
        return is_below and any(f"{served}/".startswith(f"{path}/") for served in self.operations)

    def _nearest(self, path: str) -> str | None:
        """The served path that `path` is much like, or the shortest one below it."""
        close = difflib.get_close_matches(path, self.operations, n=1, cutoff=CLOSE_ENOUGH)
        below = [served for served in self.operations if served.startswith(path + "/")]
        return close[0] if close else min(below, key=len, default=None)

    def _name(self, path: str) -> str:
        return f"{' and '.join(self.operations[path])} {path}"


def _is_at(path: str, served: str) -> bool:
    """Whether a path is that of an operation, whose path may have parts such as `{file_id}`."""
    parts, wanted = path.split("/"), served.split("/")
    return len(parts) == len(wanted) and all(
        part == one or one.startswith("{") for part, one in zip(parts, wanted, strict=True)
    )


def _tidy(path: str) -> str:
    """The path cut to a bounded length, in lower case, without double and trailing slashes."""
    return re.sub("/+", "/", path[:MAX_PATH_LENGTH].lower()).rstrip("/")


def _shown(method: str, path: str) -> str:
    cut = "..." if len(path) > MAX_PATH_LENGTH else ""
    shown_path = quote(path[:MAX_PATH_LENGTH], safe="/:{}", errors="replace")
    return f"{method[:MAX_METHOD_LENGTH]} {shown_path}{cut}"


def _known(path: str) -> str | None:
    """The longest path of `NOTES` that `path` is, or is below."""
    path = path.removeprefix("/v1")
    matches = [known for known in NOTES if path == known or path.startswith(known + "/")]
    return max(matches, key=len, default=None)
