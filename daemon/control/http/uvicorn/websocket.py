"""uvicorn's WebSocket protocol with what it lacks against hostile clients. Nothing here knows the daemon.

- Frames that arrive before the handshake has been answered wait for the answer. The library would read them as if the
  connection were open already, and fails.
- A handshake that the library cannot read is answered at once, and the connection is closed.
- A text message that is not UTF-8 closes the connection, also where the client's Close came with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from daemon.control.http.uvicorn.request_head import refusal

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """What uvicorn is given as `ws=`."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        """As uvicorn makes it."""
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self._early = b""  # arrived before the handshake was answered; one read at most, as reading pauses then

    def data_received(self, data: bytes) -> None:
        """The handshake first; then frames, once the application has accepted it."""
        if self.handshake_initiated and not self.handshake_complete:
            self._early += data
            self.transport.pause_reading()
            return
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            answer = b"".join(self.conn.data_to_send())
            self.transport.write(answer or refusal(400, "the WebSocket's handshake cannot be read"))
            self.transport.close()

    async def send(self, message: Any) -> None:  # noqa: ANN401  (ASGI's)
        """A message of the application's; with the first one it answers the handshake."""
        if not self.handshake_complete and self.transport.is_closing():
            raise ClientDisconnected  # nothing can be answered, so no later message would be understood
        await super().send(message)
        if self._early and self.handshake_complete:
            early, self._early = self._early, b""
            if not self.transport.is_closing():
                self.transport.resume_reading()
                self.data_received(early)

    def send_receive_event_to_app(self) -> None:
        """A message is complete."""
        is_text = self.curr_msg_data_type == "text" and not self.close_sent
        if is_text and not _is_utf_8(b"".join(self.frames)):
            self.frames = []
            self.conn.fail(CloseCode.INVALID_DATA, "text must be UTF-8")
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """The client broke a rule, and the connection is closed: what the application still sends finds nobody."""
        self.disconnected = True
        super().handle_parser_exception()


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
