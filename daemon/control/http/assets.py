"""Static files of the HTTP front: the page at /, and Swagger UI at /docs. Main thread.

The names are listed when the front starts, so a path from a client never reaches the file system. Each file is read
when requested: browsers cache it, so the daemon need not. Its ETag is cached: hashing Swagger UI's script takes more
than a millisecond, in which the event loop serves no one else.
"""

from __future__ import annotations

import hashlib
import os
from email.utils import formatdate
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

from daemon.control.http.api.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".woff2": "font/woff2",
    ".wav": "audio/wav",
}
# No resources from elsewhere, no inline code, and no framing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
PAGE_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
_CACHED = "no-cache"  # browsers revalidate each time: a new page must not use old scripts
SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# Paths are relative, so that the page works behind a proxy with a prefix.
DOCS_HTML = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>streaming-daemon: API</title>
<link rel="icon" href="docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/assets/start.js"></script>
</body>
</html>
"""
START_JS = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""


class Assets:
    """The files of a folder, by name."""

    def __init__(self, folder: Path | None, names: tuple[str, ...] = ()) -> None:
        """All files of the folder with a known type, or those in `names`. A missing folder is empty."""
        paths = () if folder is None or not folder.is_dir() else folder.iterdir()
        self._files = {
            path.name: path
            for path in paths
            if path.suffix in _TYPES and path.is_file() and (not names or path.name in names)
        }
        self._tags: dict[str, tuple[tuple[int, ...], str]] = {}  # by name, with the file state it belongs to

    def response(self, request: Request, name: str, headers: dict[str, str] | None = None) -> Response:
        """A file, or 304 when the client has it already. Raises ApiError 404."""
        path = self._files.get(name)
        if path is None:
            raise ApiError(404, "route_not_found", "no such file")
        try:
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                stamp = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
                known = self._tags.get(name)
                body = file.read()
        except FileNotFoundError:
            raise ApiError(404, "route_not_found", "no such file") from None
        tag = known[1] if known is not None and known[0] == stamp else tag_of(body)
        self._tags[name] = stamp, tag
        sent_headers = {"Last-Modified": formatdate(state.st_mtime, usegmt=True), **(headers or {})}
        return cached(request, body, _TYPES[path.suffix], sent_headers, tag)


def tag_of(body: bytes) -> str:
    """An ETag from a digest of the body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def cached(request: Request, body: bytes, content_type: str, headers: dict[str, str], tag: str) -> Response:
    """A body with its ETag, or 304 when the client has it already."""
    sent_headers = {"ETag": tag, "Cache-Control": _CACHED, **headers}
    known = request.headers.get("if-none-match", "")
    if tag in {known_tag.strip().removeprefix("W/") for known_tag in known.split(",")}:
        return Response(status_code=304, headers=sent_headers)
    return Response(body, headers=sent_headers, media_type=content_type)


def swagger() -> Assets:
    """Swagger UI's files from its package."""
    return Assets(Path(str(resources.files("fastapi_swagger.resources"))), SWAGGER_FILES)
