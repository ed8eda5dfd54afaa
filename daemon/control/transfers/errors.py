"""Maps libcurl's errors before a stream's start to the failures of backends.relay. Pure.

libcurl's own messages contain hosts and addresses, so only its fixed text for an error code is passed on.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from backends.relay import Failure, FailureKind
from daemon.control.transfers.libcurl import E_HTTP2_STREAM, E_TOO_LARGE

if TYPE_CHECKING:
    from backends.relay import Origin

_UNSUPPORTED_PROTOCOL = 1  # the response does not begin like HTTP/1
_NOT_RESOLVED = 6
_NOT_CONNECTED = 7
_WEIRD_REPLY = 8
_HTTP2 = 16
_PARTIAL = 18
_NO_MEMORY = 27
_TIMED_OUT = 28
_TLS_FAILED = 35
_NOTHING_CAME = 52
_NOT_SENT = 55
_NOT_RECEIVED = 56
_CA_FILE_UNREADABLE = 77

_CERTIFICATE = frozenset({51, 60, 83, 90, 91})
_RESET = frozenset({_HTTP2, _PARTIAL, _NOTHING_CAME, _NOT_SENT, _NOT_RECEIVED, E_HTTP2_STREAM})
_OUR_WANT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
# Parts of OpenSSL's and libcurl's messages, used for matching only.
_NO_COMMON_PROTOCOL = "no application protocol"
_NO_TLS = "wrong version number"
_TOO_LARGE = "too large response headers"


def failure_of(code: int, message: str, system_error: int, origin: Origin, *, has_connected: bool) -> Failure:  # noqa: PLR0911
    """The failure for a CURLcode before the response's head has arrived.

    `message` is libcurl's own text, `system_error` its last errno. `has_connected`: a connection to this origin has
    answered before, or the TLS handshake settled the HTTP version, so the version cannot be at fault.
    """
    kind = FailureKind
    if code == _NO_MEMORY or (code in {_NOT_RESOLVED, _NOT_CONNECTED} and system_error in _OUR_WANT):
        return Failure(kind.NO_RESOURCES, detail="out of memory or file descriptors for a connection")
    if code == _NOT_RESOLVED:
        return Failure(kind.CONNECT, detail="its name cannot be resolved")
    if code == _NOT_CONNECTED:
        return Failure(kind.CONNECT, detail="no connection could be made")
    if code == _TIMED_OUT:
        return Failure(kind.CONNECT_TIMEOUT, detail="no connection within connect_timeout_ms")
    if code in _CERTIFICATE:
        return Failure(kind.CERTIFICATE, detail="its certificate could not be verified")
    if code == _CA_FILE_UNREADABLE:
        return Failure(kind.CERTIFICATE, detail="the file of trusted certificates cannot be read")
    if code == _TLS_FAILED:
        return _handshake_failure(message.lower(), origin)
    if code == _UNSUPPORTED_PROTOCOL or (code in _RESET and _speaks_blindly(origin) and not has_connected):
        return wrong_version(origin)
    if code == E_TOO_LARGE or _TOO_LARGE in message.lower():
        return Failure(kind.HEAD_TOO_LARGE, detail="the response head is too large")
    if code == _WEIRD_REPLY:
        return Failure(kind.HEAD_MALFORMED, detail="the response head is not HTTP")
    if code in _RESET:
        return Failure(kind.RESET, detail="the connection was closed before a response")
    return Failure(kind.NO_RESOURCES, detail=f"the request could not be made (libcurl's code {code})")


def wrong_version(origin: Origin) -> Failure:
    """The server speaks another version of HTTP than configured."""
    if origin.http2:
        detail = "its response is not HTTP/2: if it speaks HTTP/1.1, set http2_enabled = false"
    else:
        detail = "its response is not HTTP/1.1: if it speaks HTTP/2, set http2_enabled = true"
    return Failure(FailureKind.HTTP_VERSION, detail=detail)


def _speaks_blindly(origin: Origin) -> bool:
    """HTTP/2 with prior knowledge: a server without it closes, or responds with bytes that are not a frame."""
    return origin.http2 and origin.scheme == "http"


def _handshake_failure(message: str, origin: Origin) -> Failure:
    if _NO_COMMON_PROTOCOL in message:
        return wrong_version(origin)
    if _NO_TLS in message:
        return Failure(FailureKind.CONNECT, detail="it does not speak TLS at this port: use http:// in its address")
    return Failure(FailureKind.CONNECT, detail="the TLS handshake failed")
