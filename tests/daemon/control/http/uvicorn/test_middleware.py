"""Who may ask: the key of a WebSocket, which comes with the names of its protocols where a browser opens it."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest

from daemon.control.http.api.keys import Keys
from daemon.control.http.uvicorn.middleware import KEY_PROTOCOL, PROTOCOL, Guard, Requests, caller_of

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Message, Receive, Scope, Send

KEY = "a/b+c.d~e-f_g=="


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text(f"reader: {KEY}\n")
    path.chmod(0o600)
    return Keys(str(path))


def user_of(keys: Keys, headers: list[tuple[bytes, bytes]], protocols: list[str]) -> str | None:
    """Who the application is told asks with a WebSocket; None: it is not asked at all, and the handshake is refused."""
    users: list[str] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        users.append(caller_of(scope).user)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "websocket", "path": "/audio/ws", "headers": headers, "subprotocols": protocols}
    asyncio.run(Requests(Guard(app, keys, (), ()))(scope, receive, send))
    if not users:
        [refusal] = sent
        assert refusal["type"] == "websocket.close"
        assert KEY not in str(refusal)
        return None
    assert sent == []
    return users[0]


def protocol_of(key: str) -> str:
    return KEY_PROTOCOL + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def test_a_key_among_the_protocols(keys: Keys) -> None:
    assert user_of(keys, [], [PROTOCOL, protocol_of(KEY)]) == "reader"
    assert user_of(keys, [(b"authorization", f"Bearer {KEY}".encode())], []) == "reader"


@pytest.mark.parametrize(
    "protocols",
    [
        [],
        [PROTOCOL],
        [PROTOCOL, protocol_of("another-key")],
        [PROTOCOL, KEY_PROTOCOL],
        [PROTOCOL, KEY_PROTOCOL + "a"],
        [PROTOCOL, KEY_PROTOCOL + "+/=="],
        [PROTOCOL, KEY_PROTOCOL + "ä"],
    ],
)
def test_no_key_or_a_wrong_one_is_refused(keys: Keys, protocols: list[str]) -> None:
    assert user_of(keys, [], protocols) is None


def test_the_header_goes_before(keys: Keys) -> None:
    wrong = [(b"authorization", b"Bearer another-key")]
    assert user_of(keys, wrong, [PROTOCOL, protocol_of(KEY)]) is None
