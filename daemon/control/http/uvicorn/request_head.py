"""What of a request's head httptools lets through and a server must not. Nothing here knows the daemon.

Each rule is RFC 9112's. What two servers on a request's way could read in two ways is refused, and never repaired.
"""

from __future__ import annotations

import json
import re
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# RFC 9112, 3.2: a name, an IPv4 address or an IPv6 address in brackets, and a port where it is not the usual one.
_is_host = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?"
).fullmatch
is_request_id = re.compile(rb"[!-~]{1,128}").fullmatch


class Fault(NamedTuple):
    """Why a request is refused, and with which status."""

    status: int
    message: str


def fault_of(version: str, headers: Sequence[tuple[bytes, bytes]]) -> Fault | None:
    """What is wrong with a head that could be parsed. Names of headers are in lower case."""
    if version not in {"1.0", "1.1"}:
        return Fault(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
    hosts: list[bytes] = []
    authorization_count = 0
    codings: list[bytes] = []
    for name, value in headers:  # once, as every request comes here
        if name == b"host":
            hosts.append(value)
        elif name == b"authorization":
            authorization_count += 1
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return Fault(400, "a request has one Host header")
    if hosts and not _is_host(hosts[0].strip(b" \t")):
        return Fault(400, "header `host`: it must be a host name or an address, and may end in a colon and a port")
    if authorization_count > 1:
        return Fault(400, "header `authorization`: a request has one at most")
    if codings and version == "1.0":
        return Fault(400, "HTTP/1.0 has no Transfer-Encoding: send a Content-Length")
    if codings and codings != [b"chunked"]:
        return Fault(400, "Transfer-Encoding must be chunked, and nothing besides")
    return None


def fault_of_websocket(method: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> Fault | None:
    """The same, where it asks for a WebSocket (RFC 6455, 4.1)."""
    if method != b"GET" or version != "1.1" or has_body(headers):
        return Fault(400, "a WebSocket begins with a GET of HTTP/1.1 that has no body")
    return None


def refusal(status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A whole response for a request that is refused by its head, in OpenAI's envelope and with the request's id.

    `headers` are the request's, as far as they are known; without an id among them that can be used it gets a new one.
    """
    given = next((value for name, value in headers if name == b"x-request-id" and is_request_id(value)), None)
    request_id = secrets.token_hex(16) if given is None else given.decode("ascii")
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def has_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a body follows a head without a fault."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0) for name, value in headers
    )


def body_head(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A head that is followed by the same body, and says nothing else."""
    framing = [b"%b: %b\r\n" % one for one in headers if one[0] in {b"transfer-encoding", b"content-length"}]
    return b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n"


class BodyListener:
    """Hears of a body from a parser, and of nothing else."""

    def __init__(self, on_body: Callable[[bytes], None], on_message_complete: Callable[[], None]) -> None:
        """What the parser calls."""
        self.on_body = on_body
        self.on_message_complete = on_message_complete
