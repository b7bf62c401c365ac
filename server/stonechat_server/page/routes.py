"""Serves the page, its files, and the load figures that it shows.

All files belong to the package. A Content-Security-Policy lets the page talk to its own server
only.
"""

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stonechat_server.serving.services import services_of

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str
    etag: str


def page_router() -> APIRouter:
    """Routes `/`, `/page/load` and `/page/{file}`. Files are read once, here."""
    files = {path.name: _read(path) for path in sorted(STATIC.iterdir())}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def index(request: Request) -> Response:
        return _answer(request, files["index.html"])

    @router.get("/page/load")
    def load(request: Request) -> Response:
        state = services_of(request)
        state.authenticator.identify(request)
        request.state.log_level = logging.DEBUG  # every open page asks every two seconds
        return JSONResponse(asdict(state.engine.stats()), headers={"Cache-Control": "no-store"})

    @router.get("/page/{name}")
    def static_file(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise HTTPException(404)
        return _answer(request, file)

    return router


def _read(path: Path) -> _File:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:16]
    return _File(body, MEDIA_TYPES[path.suffix], f'"{digest}"')


def _answer(request: Request, file: _File) -> Response:
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)
