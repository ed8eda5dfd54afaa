"""Addresses in the form that connect(2) takes, and those that need no lookup. Pure."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.relay import Origin

SOCKET_PATH_BYTES_MAX = 107

logger = logging.getLogger(__name__)


def literal_addresses(origin: Origin) -> tuple[bytes, ...] | None:
    """The address of a Unix socket or a literal IP address, which need no lookup; None for a name.

    Empty for an invalid address: the caller handles it like a name that cannot be resolved.
    """
    if origin.socket_path:
        try:
            return (packed_unix(origin.socket_path),)
        except ValueError as error:
            logger.warning("upstream %s cannot be reached: %s", origin.name, error)
            return ()
    try:
        address = ipaddress.ip_address(origin.host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return (packed_ipv4(address.packed, origin.port),)
    scope = address.scope_id
    if scope is None:
        return (packed_ipv6(address.packed, origin.port),)
    try:
        index = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    except OSError:
        logger.warning("upstream %s names a network interface that does not exist", origin.name)
        return ()
    return (packed_ipv6(address.packed, origin.port, scope=index),)


def packed_unix(path: str) -> bytes:
    """A struct sockaddr_un; `@` begins an abstract name, as in systemd and ss.

    Raises:
        ValueError: the path is longer than the kernel's structure.
    """
    name = os.fsencode(path)
    if not 0 < len(name) <= SOCKET_PATH_BYTES_MAX:
        raise ValueError(f"a Unix socket's path has 1 to {SOCKET_PATH_BYTES_MAX} bytes: {path!r}")
    family = struct.pack("=H", socket.AF_UNIX)
    return family + (b"\0" + name[1:] if name.startswith(b"@") else name + b"\0")


def packed_ipv4(address: bytes, port: int) -> bytes:
    """A struct sockaddr_in."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, address)


def packed_ipv6(address: bytes, port: int, flow: int = 0, scope: int = 0) -> bytes:
    """A struct sockaddr_in6."""
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HL16s", port, flow, address) + struct.pack("=L", scope)


def unpacked(address: bytes) -> tuple[socket.AddressFamily, Any]:
    """Family and address of a packed sockaddr, in the form of Python's sockets."""
    (family,) = struct.unpack_from("=H", address)
    if family == socket.AF_UNIX:
        path = address[2:]
        return socket.AF_UNIX, path if path.startswith(b"\0") else os.fsdecode(path.rstrip(b"\0"))
    port, flow = struct.unpack_from("!HL", address, 2)
    if family == socket.AF_INET:
        return socket.AF_INET, (socket.inet_ntop(socket.AF_INET, address[4:8]), port)
    assert family == socket.AF_INET6, f"no address has the family {family}"
    (scope,) = struct.unpack_from("=L", address, 24)
    return socket.AF_INET6, (socket.inet_ntop(socket.AF_INET6, address[8:24]), port, flow, scope)
