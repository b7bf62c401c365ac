"""Files of the package that are served to browsers, with headers that keep pages to themselves."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


def security_headers() -> dict[str, str]:
    """Headers of a page that may use its own server only. It may have media in itself."""
    return {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            "media-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
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


class Files:
    """The files of a folder by name, read when this is made."""

    def __init__(self, folder: Path, headers: Mapping[str, str]) -> None:
        self._files = {
            path.name: _read(path) for path in sorted(folder.iterdir()) if path.is_file()
        }
        self._headers = {**headers, "Cache-Control": "no-cache"}

    def answer(self, request: Request, name: str) -> Response:
        """Answer with a file, or with 304 if the client has it. Raises a 404 for another name."""
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404)
        headers = {**self._headers, "ETag": file.etag}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.media_type, headers=headers)


def _read(path: Path) -> _File:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:16]
    return _File(body, MEDIA_TYPES[path.suffix], f'"{digest}"')
