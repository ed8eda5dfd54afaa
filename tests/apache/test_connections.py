"""Connections that cannot be handed over, and hosts that hand nothing over.

The module does not look for TLS. stream.php does; the tests say what happens with it and without it.
"""

from __future__ import annotations

import json
import os
import socket
import ssl

import pytest

from tests.apache.environment import Site
from tests.apache.test_apache import (
    MESSAGE_COUNT,
    PROMPT,
    check_complete_stream,
    contents_of,
    curl,
    handoff_path,
    split_response,
    stream_url,
)

pytestmark = pytest.mark.apache

STREAM = "/stream.php?prompt=x"


def check_refusal(response: bytes, *names: str) -> None:
    """A whole answer of stream.php's own, which names what must end in front of Apache and says how."""
    head, body = split_response(response)
    assert b" 500" in head.splitlines()[0]
    assert b"application/problem+json" in head
    assert b"handoff" not in head.lower()
    problem = json.loads(body)
    assert problem["status"] == 500
    assert f"This connection speaks {' and '.join(names)} with Apache" in problem["detail"]
    assert f"End {' and '.join(names)} in front of this virtual host" in problem["detail"]


def raw_answer(site: Site, path: str) -> bytes:
    """All bytes that come back on a TLS connection after a request, as they are on the wire."""
    context = ssl.create_default_context(cafile=site.certificate)
    with (
        socket.create_connection(("127.0.0.1", site.tls_port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
        socket.socket(fileno=os.dup(client.fileno())) as wire,
    ):
        wire.settimeout(30)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: wire.recv(65536), b""))


def test_stream_php_refuses_tls(site: Site) -> None:
    url = f"https://localhost:{site.tls_port}{STREAM}"
    check_refusal(curl("--cacert", str(site.certificate), url), "TLS")
    assert "stream.php: This connection speaks TLS" in site.error_log()


def test_without_that_the_answer_leaves_in_clear(site: Site) -> None:
    assert b"data: [DONE]" in raw_answer(site, handoff_path(site.default_socket))
    assert b"data: [DONE]" not in raw_answer(site, STREAM)


def test_a_host_whose_proxy_ended_tls_streams(site: Site) -> None:
    url = stream_url(site).replace(site.base_url, f"http://127.0.0.1:{site.proxied_port}")
    check_complete_stream(curl("--header", "X-Forwarded-Proto: https", url), PROMPT)


def test_a_host_that_says_nothing_hands_nothing_over(site: Site) -> None:
    path = handoff_path(site.default_socket, output_count="1")
    head, body = split_response(curl(f"http://127.0.0.1:{site.silent_port}{path}"))
    assert body == b"written by mistake "
    assert b"X-Socket-Handoff" in head
    url = stream_url(site).replace(site.base_url, f"http://127.0.0.1:{site.silent_port}")
    assert split_response(curl(url))[1] == b""
    assert len(contents_of(split_response(curl(stream_url(site)))[1])) == MESSAGE_COUNT
