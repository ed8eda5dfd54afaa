"""Listens for HTTP and runs the front's application on uvicorn's protocols, in the control plane's own event loop."""

from __future__ import annotations

import asyncio
import logging
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from daemon.control.http.server.startup_checks import check_places, parse_address, resolve
from daemon.control.http.server.tls import RenewableContext, load_certificates
from daemon.control.http.uvicorn.lingering import WRITE_TIMEOUT_S
from daemon.control.http.uvicorn.taking import Bounds
from daemon.control.http.uvicorn.websocket import WebSocketProtocol
from daemon.control.http.uvicorn.whole import WholeTakingProtocol
from daemon.control.process.exit_codes import StartError, status_of_errno
from daemon.control.process.supervision import essential

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.http import Http
    from daemon.control.http.uvicorn.whole import Shortcut

CLOSE_WAIT_S = 1.0  # for answers that are being written when the daemon ends
WEBSOCKET_BYTES_MAX = 1 << 20  # one message
WEBSOCKET_PING_S = 20.0

logger = logging.getLogger(__name__)


class HttpServer:
    """Serves one application until it is closed."""

    def __init__(
        self,
        settings: Http,
        application: Any,  # noqa: ANN401  (ASGI's)
        answered: Callable[[dict[str, Any] | None, int], None] | None = None,
        *,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        shortcut: Shortcut | None = None,
    ) -> None:
        """`application` is an ASGI application, `answered` counts, `shortcut` is asked before the application is.

        Raises StartError for certificates that are none.

        A client that reads nothing of its answer for `write_timeout_s` is cut off.
        """
        self._settings = settings
        self._answered = answered
        self._shortcut = shortcut
        self._config = uvicorn.Config(
            application,
            http="httptools",
            ws=WebSocketProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=max(1, round(settings.idle_timeout_ms / 1000)),
            ws_max_size=WEBSOCKET_BYTES_MAX,
            ws_per_message_deflate=False,  # sounds and features hardly shrink, and it would take longer than they do
            ws_ping_interval=WEBSOCKET_PING_S,
            ws_ping_timeout=WEBSOCKET_PING_S,
        )
        self._tls = RenewableContext.of(load_certificates(settings))
        # What clients get wrong is answered, and no news for the operator.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._config.load()
        self._state = ServerState()
        self._bounds = Bounds(
            settings.head_bytes_max, settings.head_timeout_ms / 1000, settings.connections_max, write_timeout_s
        )
        self._servers: list[asyncio.Server] = []
        self._clock: asyncio.TimerHandle | None = None

    @property
    def connection_count(self) -> int:
        """Connections that are open, streams not counted."""
        return len(self._state.connections)

    def configure(self, write_timeout_s: float) -> None:
        """From now on, for connections that come."""
        self._bounds = self._bounds._replace(write_timeout_s=write_timeout_s)

    def reload_certificates(self) -> bool:
        """Handshakes that begin from now use the files as they are now; False without TLS.

        Raises StartError where they are not as they must be: then nothing has changed.
        """
        found = load_certificates(self._settings)
        if self._tls is None or found is None:
            return False
        self._tls.current = found
        return True

    async def start(self, *, has_keys: bool) -> str:
        """Listen; the URL. Raises StartError: the address cannot be had, or anybody could ask."""
        settings = self._settings
        address = parse_address(settings.listen)
        loop = asyncio.get_running_loop()
        places = await loop.run_in_executor(None, resolve, settings)
        check_places(settings, places, has_keys=has_keys)
        port = address.port
        # A handshake is as much of a wait as a head, and asyncio would wait for a minute.
        wait_s = self._bounds.head_timeout_s if self._tls is not None else None
        try:
            for place in places:
                server = await loop.create_server(
                    self._protocol,
                    place,
                    port,
                    ssl=self._tls,
                    backlog=settings.backlog,
                    ssl_handshake_timeout=wait_s,
                    ssl_shutdown_timeout=wait_s,
                )
                self._servers.append(server)
                port = server.sockets[0].getsockname()[1]  # 0 was asked for: the second place gets the same
        except OSError as error:
            raise StartError(
                f"cannot listen on http.listen = {settings.listen!r}: {error.strerror or error}",
                status_of_errno(error.errno),
            ) from error
        self._tick()
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{'https' if self._tls is not None else 'http'}://{host}:{port}"

    def stop_listening(self) -> None:
        """Let nobody new in; idle connections are closed. WebSockets go on, because each carries a live stream."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            if not isinstance(connection, WebSocketProtocol):
                connection.shutdown()

    async def close(self) -> None:
        """End what is left, giving answers that are under way a moment."""
        self.stop_listening()
        if self._clock is not None:
            self._clock.cancel()
        tasks = set(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_WAIT_S)
            for task in late:
                task.cancel()
            if late:  # their streams are accounted for as they end
                await asyncio.wait(late, timeout=CLOSE_WAIT_S)
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _protocol(self) -> WholeTakingProtocol:
        return WholeTakingProtocol(
            config=self._config,
            server_state=self._state,
            app_state={},
            bounds=self._bounds,
            answered=self._answered,
            shortcut=self._shortcut,
        )

    def _tick(self) -> None:
        """The Date header, once a second."""
        self._state.default_headers[:] = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = asyncio.get_running_loop().call_later(1.0, essential("clock of the HTTP front", self._tick))
