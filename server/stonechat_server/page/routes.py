"""Serves the page, its files, and the load figures that it shows; and the API's docs at `/docs`.

All files belong to the package. A Content-Security-Policy lets the pages talk to their own server
only.
"""

import logging
from dataclasses import asdict
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from stonechat_models import EngineStats
from stonechat_server.access.auth import check_model
from stonechat_server.page.files import Files, security_headers
from stonechat_server.serving.services import services_of

STATIC = Path(__file__).parent / "static"
VENDOR = STATIC / "vendor"
"""Unchanged releases of the libraries that the page uses (LICENSES.txt names them)."""
DOCS = Path(__file__).parent / "docs"
"""A page around Swagger UI, an unchanged release of which is in the folder too (LICENSE.txt)."""


@cache
def page_router() -> APIRouter:
    """Routes `/`, `/page/load`, `/page/{file}`, `/page/vendor/{file}`, `/docs`, `/docs/{file}`.

    The addresses in the two pages are relative, so each page has one address. Others lead there.
    The files are read once in a process.
    """
    page = Files(STATIC, security_headers())
    vendor = Files(VENDOR, security_headers())
    docs = Files(DOCS, security_headers())
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def index(request: Request) -> Response:
        return page.answer(request, "index.html")

    @router.get("/page/load")
    def load(request: Request, model: str | None = None) -> Response:
        state = services_of(request)
        identity = state.authenticator.identify(request)
        request.state.log_level = logging.DEBUG  # every open page asks every two seconds
        served = state.sole
        if served is None:
            entry = state.models[check_model(model, state.models, identity)]
            served = entry.served if entry.is_loaded else None
        stats = EngineStats() if served is None else served.engine.stats()
        return JSONResponse(asdict(stats), headers={"Cache-Control": "no-store"})

    @router.get("/page/")
    @router.get("/page/index.html")
    def to_index() -> Response:
        return RedirectResponse("../")

    @router.get("/page/{name}")
    def static_file(request: Request, name: str) -> Response:
        return page.answer(request, name)

    @router.get("/page/vendor/{name}")
    def vendor_file(request: Request, name: str) -> Response:
        return vendor.answer(request, name)

    @router.get("/docs")
    def docs_index(request: Request) -> Response:
        return docs.answer(request, "index.html")

    @router.get("/docs/")
    @router.get("/docs/index.html")
    def to_docs() -> Response:
        return RedirectResponse("../docs")

    @router.get("/docs/{name}")
    def docs_file(request: Request, name: str) -> Response:
        return docs.answer(request, name)

    return router
