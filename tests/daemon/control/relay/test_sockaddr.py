"""Packed addresses, and origins that need no lookup."""

from __future__ import annotations

import ctypes
import socket
from typing import TYPE_CHECKING

import pytest

from backends.relay import Origin
from daemon.control.relay.sockaddr import literal_addresses, packed_unix, unpacked

if TYPE_CHECKING:
    from pathlib import Path


def origin(host: str = "upstream.test", port: int = 8000, socket_path: str = "") -> Origin:
    return Origin(name="a", scheme="http", host=host, port=port, socket_path=socket_path)


@pytest.mark.parametrize("wanted", [origin("fe80::1%no-such-interface"), origin(socket_path="/" + "x" * 200)])
def test_a_literal_that_cannot_be_is_no_address(wanted: Origin) -> None:
    assert literal_addresses(wanted) == ()


def test_the_kernel_takes_packed_addresses(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    path = str(tmp_path / "s")
    abstract = f"@streaming-daemon-test-{tmp_path.name}-{id(path)}"
    for family, bound in (
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_UNIX, path),
        (socket.AF_UNIX, "\0" + abstract[1:]),
    ):
        with socket.socket(family) as server, socket.socket(family) as client:
            try:
                server.bind(bound)
            except OSError:
                assert family == socket.AF_INET6, "only IPv6 may be missing here"
                continue
            server.listen()
            if family == socket.AF_UNIX:
                address = packed_unix(abstract if bound != path else path)
            else:
                port = server.getsockname()[1]
                found = literal_addresses(origin(bound[0], port))
                assert found is not None
                (address,) = found
            assert libc.connect(client.fileno(), address, len(address)) == 0, ctypes.get_errno()
            assert client.getpeername() == server.getsockname()
            kind, readable = unpacked(address)
            with socket.socket(kind) as second:
                second.connect(readable)
