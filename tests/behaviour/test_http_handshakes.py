"""Clients of the HTTP front under TLS that do not get as far as a request."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import LATE_S_MAX
from tests.behaviour.http_helpers import TIMEOUT_S, Front, http_config, serving, tls

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_TIMEOUT_MS = 2000


@pytest.fixture(name="front", scope="module")
def _front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    http = {**tls(), "head_timeout_ms": HEAD_TIMEOUT_MS}
    with serving("epoll", tmp_path_factory.mktemp("handshakes"), http_config(http)) as front:
        yield front


@pytest.mark.parametrize(
    "data",
    [b"", b"\x16\x03\x01\x00\xc8\x01", b"GET /health HTTP/1.1\r\nHost: daemon\r\n\r\n"],
    ids=["none", "half", "http"],
)
def test_a_handshake_that_does_not_come_ends_in_time(front: Front, data: bytes) -> None:
    with front.leaves_nothing(), contextlib.ExitStack() as stack:
        place = ("127.0.0.1", front.port)
        clients = [stack.enter_context(socket.create_connection(place, timeout=TIMEOUT_S)) for _ in range(20)]
        started_s = time.monotonic()
        for client in clients:
            client.sendall(data)
        for client in clients:
            with contextlib.suppress(ConnectionResetError):  # as good as an end
                while client.recv(4096):
                    pass
        assert time.monotonic() - started_s < HEAD_TIMEOUT_MS / 1000 + LATE_S_MAX
    front.is_well()


def test_a_certificate_that_is_not_trusted_costs_nothing(front: Front) -> None:
    with front.leaves_nothing():
        for _ in range(10):
            with (
                socket.create_connection(("127.0.0.1", front.port), timeout=TIMEOUT_S) as client,
                pytest.raises(ssl.SSLCertVerificationError),
            ):
                ssl.create_default_context().wrap_socket(client, server_hostname="localhost")
    front.is_well()


def test_a_head_that_does_not_come_ends_in_time(front: Front) -> None:
    with front.leaves_nothing(), front.connect() as wire:
        wire.send(b"GET /health")
        assert wire.reply().status == 408
        assert wire.rest() == b""
