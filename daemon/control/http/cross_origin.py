"""CORS: which other sites' pages may ask, and what a stream's own head has to say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

from daemon.control.http.middleware import CORS_HEADERS_SHOWN, header_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

_SHOWN = ", ".join(CORS_HEADERS_SHOWN)
_MAX_AGE_S = 600


class CrossOrigin:
    """The origins that may ask."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        """`*` is everybody."""
        self.origins = origins
        self._takes_all = "*" in origins
        self._known = frozenset(origin.encode() for origin in origins)

    def headers(self, scope: Scope) -> dict[str, str]:
        """For a response whose head does not pass through the middleware."""
        if not self.origins:
            return {}
        vary = {} if self._takes_all else {"Vary": "Origin"}
        origin = header_of(scope, b"origin")
        if origin is None or not (self._takes_all or origin in self._known):
            return vary
        allowed = "*" if self._takes_all else origin.decode("latin-1")
        return {"Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": _SHOWN, **vary}

    def around(self, app: ASGIApp) -> ASGIApp:
        """The middleware, which also answers preflight requests; nothing where no origin is configured."""
        if not self.origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=self.origins,
            allow_methods=("GET", "POST", "HEAD"),
            allow_headers=("*",),
            expose_headers=CORS_HEADERS_SHOWN,
            max_age=_MAX_AGE_S,
        )
