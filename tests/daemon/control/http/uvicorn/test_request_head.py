"""Heads that could be parsed, and are refused or not. Whole requests: tests/behaviour/test_http_hostile.py."""

from __future__ import annotations

import json
import re

import httptools
import pytest

from daemon.control.http.uvicorn.request_head import (
    BodyListener,
    body_head,
    fault_of,
    fault_of_websocket,
    has_body,
    refusal,
)

HOST = (b"host", b"daemon")
AUTHORIZATION = (b"authorization", b"Bearer a")
HOSTS = (b"a", b"a.example:80", b" 127.0.0.1:8080 ", b"[::1]", b"[::ffff:1.2.3.4]:1", b"a:", b"a_b", b"a%20b")
NO_HOSTS = (
    *(b"", b" ", b":80", b"a b", b"a,b:1:2", b"a/b", b"user@a", b"a:b", b"a:123456"),
    *(b"[::1", b"::1", b"a%2", b"\xe4", b"a#b"),
)
CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    ("version", "headers", "status"),
    [
        ("1.1", [HOST], None),
        ("1.0", [], None),
        ("1.1", [HOST, (b"transfer-encoding", b" Chunked ")], None),
        ("0.9", [], 505),
        ("2.0", [HOST], 505),
        ("1.1", [], 400),
        ("1.1", [HOST, HOST], 400),
        *[("1.1", [(b"host", value)], None) for value in HOSTS],
        *[("1.1", [(b"host", value)], 400) for value in NO_HOSTS],
        *[("1.0", [(b"host", value)], 400) for value in NO_HOSTS],
        ("1.1", [HOST, AUTHORIZATION], None),
        ("1.1", [HOST, AUTHORIZATION, AUTHORIZATION], 400),
        ("1.0", [AUTHORIZATION, (b"authorization", b"Basic b")], 400),
        ("1.0", [HOST, HOST], 400),
        ("1.0", [HOST, CHUNKED], 400),
        ("1.1", [HOST, CHUNKED, CHUNKED], 400),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], 400),
    ],
)
def test_faults(version: str, headers: list[tuple[bytes, bytes]], status: int | None) -> None:
    fault = fault_of(version, headers)
    assert (None if fault is None else fault.status) == status


@pytest.mark.parametrize(
    ("given", "said"),
    [(b"mine", "mine"), (b"", None), (b"a b", None), (b"x" * 129, None), (b"\xe9", None), (None, None)],
)
def test_a_refusal_has_the_requests_id(given: bytes | None, said: str | None) -> None:
    headers = [HOST] if given is None else [HOST, (b"x-request-id", given)]
    head, _, body = refusal(431, "too large", headers).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    found = dict(line.split(": ") for line in lines)
    assert first == "HTTP/1.1 431 Request Header Fields Too Large"
    assert found["Content-Length"] == str(len(body))
    assert found["X-Request-Id"] == said or (said is None and re.fullmatch("[0-9a-f]{32}", found["X-Request-Id"]))
    assert json.loads(body)["error"]["message"] == "too large"


def test_a_websocket_begins_without_a_body() -> None:
    assert fault_of_websocket(b"GET", "1.1", [HOST]) is None
    assert fault_of_websocket(b"POST", "1.1", [HOST]) is not None
    assert fault_of_websocket(b"GET", "1.0", [HOST]) is not None
    assert fault_of_websocket(b"GET", "1.1", [HOST, CHUNKED]) is not None


@pytest.mark.parametrize(
    ("framing", "body"), [((b"content-length", b"5"), b"hello"), (CHUNKED, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")]
)
def test_a_body_is_read_behind_a_head_that_says_nothing_else(framing: tuple[bytes, bytes], body: bytes) -> None:
    heard: list[bytes] = []
    headers = [HOST, (b"upgrade", b"h2c"), framing]
    parser = httptools.HttpRequestParser(BodyListener(heard.append, lambda: heard.append(b"|")))
    parser.feed_data(body_head(headers))
    parser.feed_data(body)
    assert b"".join(heard) == b"hello|"
    assert has_body(headers)
    assert not has_body([HOST, (b"content-length", b"0")])
