"""Assembles the HTTP front: its application, its server, and the settings they need. Main thread."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from daemon.control.http.api.keys import KeysError
from daemon.control.http.api.model_routing import RELAYING_BACKEND, Router, Served, UpstreamModels
from daemon.control.http.server.startup_checks import read_keys
from daemon.control.http.uvicorn.application import Options, ShownLimits, build
from daemon.control.http.uvicorn.audio import BACKEND as MEL
from daemon.control.http.uvicorn.audio import Audio, add_routes
from daemon.control.http.uvicorn.front import HttpFront
from daemon.control.http.uvicorn.server import HttpServer
from daemon.control.http.uvicorn.shortcut import StreamShortcut
from daemon.control.process.exit_codes import StartError
from daemon.control.telemetry.http_metrics import HttpAccounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.registry import Registry
    from config.settings import Settings
    from daemon.control.admission.admission import Admission
    from daemon.control.relay.backends import RelayingBackend
    from daemon.control.telemetry.server import Page

ANSWER_TIMEOUT_S_MAX = 86_400.0  # where streams have no limit

logger = logging.getLogger(__name__)


class FrontEnd:
    """The HTTP front of a daemon."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        relaying: Mapping[str, RelayingBackend],
        admission: Admission,
        pages: Mapping[str, Page],
    ) -> None:
        """`pages` are the monitoring server's; more may be added until `start`. Raises StartError."""
        self._settings = settings
        self._names = frozenset(registry.names())
        self._relaying = relaying
        self._admission = admission
        self._pages = pages
        self._keys = read_keys(settings.http)
        self._router = Router(self._served())
        self._server: HttpServer | None = None
        self.accounts = HttpAccounts()

    async def start(self) -> str:
        """Listen; returns the URL. Raises StartError."""
        http = self._settings.http
        front = HttpFront(self._admission)
        options = Options(
            router=self._router,
            pages=self._pages,
            keys=self._keys,
            limits=self._limits,
            cors_origins=http.cors_origins,
            body_bytes_max=http.body_bytes_max,
            body_timeout_s=http.body_timeout_ms / 1000,
            answer_bytes_max=http.answer_bytes_max,
            answer_timeout_s=self._settings.timeouts.stream_timeout_ms / 1000 or ANSWER_TIMEOUT_S_MAX,
        )
        anyio.get_cancelled_exc_class()  # forces an import that would delay the first request
        application = build(front, options)
        audio = Audio(front, self._keys, http.cors_origins, is_enabled=MEL in self._names)
        add_routes(application, audio, has_keys=self._keys is not None)
        write_timeout_s = self._settings.timeouts.write_timeout_ms / 1000
        on_response = self.accounts.on_response
        shortcut = StreamShortcut(front, application, options, on_response)
        server = HttpServer(http, application, on_response, write_timeout_s=write_timeout_s, shortcut=shortcut)
        self._server = server
        self.accounts.connection_count = lambda: server.connection_count
        return await server.start(has_keys=self._keys is not None)

    def stop_listening(self) -> None:
        """Accept no more connections; idle connections are closed."""
        if self._server is not None:
            self._server.stop_listening()

    async def close(self) -> None:
        """Close the remaining connections, after a short time for responses in progress."""
        if self._server is not None:
            await self._server.close()

    def reload(self, settings: Settings) -> bool:
        """Apply changed limits and upstreams, and read the files of keys and certificates again.

        False when one of these is invalid, which is logged: the invalid part keeps its old state.
        """
        self._settings = settings
        self._router.configure(self._served())
        if self._server is not None:
            self._server.configure(settings.timeouts.write_timeout_ms / 1000)
        return all([self._reload_keys(), self._reload_certificates()])

    def _reload_keys(self) -> bool:
        if self._keys is None:
            return True
        try:
            self._keys.reload()
        except KeysError as error:
            logger.error("the keys in force stay: %s", error)  # noqa: TRY400  (no traceback)
            return False
        logger.info("http.api_keys_file was read again: %d keys", len(self._keys))
        return True

    def _reload_certificates(self) -> bool:
        try:
            if self._server is not None and self._server.reload_certificates():
                logger.info("http.tls_certificate_file and http.tls_key_file were read again")
        except StartError as error:
            logger.error("the certificate in force stays: %s", error)  # noqa: TRY400  (no traceback)
            return False
        return True

    def _served(self) -> Served:
        backend = self._relaying.get(RELAYING_BACKEND)
        upstreams = () if backend is None else backend.upstreams()
        models = tuple(UpstreamModels(upstream.name, tuple(upstream.options.models)) for upstream in upstreams)
        return Served(self._names, models, self._settings.backend.openai.model)

    def _limits(self) -> ShownLimits:
        limits = self._settings.limits
        return ShownLimits(limits.streams_per_user, limits.requests_per_minute_per_user)
