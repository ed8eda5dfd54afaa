"""Clients of the HTTP front that break the rules: what is no HTTP, requests put together to be read in two ways, cut
requests, too much and too slow. Each gets its answer or none, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import LATE_S_MAX
from tests.behaviour.http_helpers import (
    CHAT,
    COMPLETIONS,
    TEST_MODEL,
    Front,
    asking,
    get,
    http_config,
    post,
    serving,
    tokens_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_BYTES_MAX = 4096
BODY_BYTES_MAX = 32_768
HEAD_TIMEOUT_MS = 500
BODY_TIMEOUT_MS = 600
SIZES: dict[str, object] = {"head_bytes_max": HEAD_BYTES_MAX, "body_bytes_max": BODY_BYTES_MAX}
# Of the front that waits for nobody; elsewhere no request may come too late because the machine is busy.
TIMES: dict[str, object] = {
    "head_timeout_ms": HEAD_TIMEOUT_MS,
    "body_timeout_ms": BODY_TIMEOUT_MS,
    "idle_timeout_ms": 1500,
}
STARTED = 'streaming_daemon_requests_total{status="started"}'
SMUGGLED = get("/health", "X-Smuggled: 1\r\n")
SMALL = json.dumps(asking(stream=False, max_tokens=1)).encode()


@pytest.fixture(name="front", scope="module")
def _front(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with serving(kernel, tmp_path_factory.mktemp("hostile"), http_config(SIZES)) as front:
        yield front


@pytest.fixture(name="impatient", scope="module")
def _impatient(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with serving(kernel, tmp_path_factory.mktemp("impatient"), http_config({**SIZES, **TIMES})) as front:
        yield front


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def in_chunks(body: bytes, headers: str = "Transfer-Encoding: chunked\r\n", version: str = "1.1") -> bytes:
    """A completion whose body is this, as it is."""
    first = f"POST {COMPLETIONS} HTTP/{version}\r\nHost: daemon\r\nContent-Type: application/json\r\n"
    return f"{first}{headers}\r\n".encode() + body


# ---- what is no HTTP, and what could be read in two ways


NO_HTTP = {
    "noise": b"\x00\x01\x02\x03\xff\xfe\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(64) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "version 9": get("/health", version="9.9"),
    "version 2": get("/health", version="2.0"),
    "unknown method": get("/health", method="MAKE-TEA"),
    "space before the colon": get("/health", "X-Name : value\r\n"),
    "NUL in a value": get("/health", "X-Name: a\0b\r\n"),
    "control byte in a value": get("/health", "X-Name: a\x01b\r\n"),
    "control byte in a name": get("/health", "X-\x02Name: a\r\n"),
    "NUL in the target": get("/hea\0lth"),
    "bare CR in a value": get("/health", "X-Name: a\rX-Other: b\r\n"),
    "no colon": get("/health", "Nonsense\r\n"),
    "folded line": b"GET /health HTTP/1.1\r\nHost: daemon\r\nX-Name: a\r\n b\r\n\r\n",
    "empty name": get("/health", ": value\r\n"),
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": get("/health", "Host: other\r\n"),
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_refused(front: Front, name: str) -> None:
    with front.connect() as wire:
        wire.send(NO_HTTP[name] + SMUGGLED)
        reply = wire.reply()
        assert reply.status in {400, 431, 505}, reply
        assert reply.error["type"] == "invalid_request_error"
        assert wire.rest() == b"", "what came behind it was answered"


LENGTH = len(SMALL)
TWO_WAYS = {
    "length and chunks": in_chunks(
        chunked(SMALL), f"Content-Length: {len(chunked(SMALL))}\r\nTransfer-Encoding: chunked\r\n"
    ),
    "chunks and length": in_chunks(chunked(SMALL), "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
    "two lengths": in_chunks(SMALL, f"Content-Length: {LENGTH}\r\nContent-Length: {LENGTH + 7}\r\n"),
    "one length twice": in_chunks(SMALL, f"Content-Length: {LENGTH}\r\nContent-Length: {LENGTH}\r\n"),
    "a list of lengths": in_chunks(SMALL, f"Content-Length: {LENGTH}, {LENGTH}\r\n"),
    "a length with a sign": in_chunks(SMALL, f"Content-Length: +{LENGTH}\r\n"),
    "a negative length": in_chunks(SMALL, f"Content-Length: -{LENGTH}\r\n"),
    "a length in hexadecimal": in_chunks(SMALL, f"Content-Length: 0x{LENGTH:x}\r\n"),
    "a length beyond 64 bits": in_chunks(SMALL, f"Content-Length: {2**64 + LENGTH}\r\n"),
    "an empty length": in_chunks(SMALL, "Content-Length: \r\n"),
    "chunked is not last": in_chunks(chunked(SMALL), "Transfer-Encoding: chunked, gzip\r\n"),
    "gzip, chunked": in_chunks(chunked(SMALL), "Transfer-Encoding: gzip, chunked\r\n"),
    "an unknown coding": in_chunks(chunked(SMALL), "Transfer-Encoding: xchunked\r\n"),
    "a coding with a tail": in_chunks(chunked(SMALL), "Transfer-Encoding: chunked;x=1\r\n"),
    "chunked twice": in_chunks(chunked(SMALL), "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "chunked and identity": in_chunks(chunked(SMALL), "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
    "identity": in_chunks(SMALL, "Transfer-Encoding: identity\r\n"),
    "chunks in HTTP/1.0": in_chunks(chunked(SMALL), version="1.0"),
    "a space before the colon": in_chunks(chunked(SMALL), "Transfer-Encoding : chunked\r\n"),
    "a vertical tab": in_chunks(chunked(SMALL), "Transfer-Encoding: \x0bchunked\r\n"),
}


@pytest.mark.parametrize("name", TWO_WAYS)
def test_what_could_be_read_in_two_ways_is_refused(front: Front, name: str) -> None:
    with front.connect() as wire:
        wire.send(TWO_WAYS[name] + SMUGGLED)
        reply = wire.reply()
        assert reply.status == 400, reply
        assert wire.rest() == b"", "what came behind it was answered"


BAD_CHUNKS = {
    "no number": b"xyz\r\n" + SMALL,
    "negative": b"-5\r\n" + SMALL,
    "prefixed": b"0x10\r\n" + SMALL,
    "beyond 64 bits": b"fffffffffffffffff\r\n" + SMALL,
    "longer than it says": b"4\r\n" + SMALL + b"\r\n0\r\n\r\n",
    "no line end behind it": b"%x\r\n%b0\r\n\r\n" % (len(SMALL), SMALL),
    "empty size": b"\r\n" + SMALL,
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_chunks_that_are_wrong_are_refused(front: Front, name: str) -> None:
    with front.connect() as wire:
        wire.send(in_chunks(BAD_CHUNKS[name]) + SMUGGLED)
        assert wire.reply().status == 400
        assert wire.rest() == b""


def test_chunks_that_are_right_are_read(front: Front) -> None:
    for body in (
        chunked(SMALL),
        chunked(*(SMALL[index : index + 1] for index in range(len(SMALL)))),
        b"%x;name=value;other\r\n%b\r\n0\r\n\r\n" % (len(SMALL), SMALL),
        b"%X\r\n%b\r\n000\r\nX-Trailer: 1\r\n\r\n" % (len(SMALL), SMALL),
    ):
        with front.connect() as wire:
            wire.send(in_chunks(body) + SMUGGLED)
            assert wire.reply().json["choices"][0]["text"] == tokens_of(1)


# ---- what is HTTP, and rare


def test_http_1_0(front: Front) -> None:
    plain = front.ask(get("/health", version="1.0"))
    assert plain.status == 200
    streamed = front.ask(post(COMPLETIONS, asking(max_tokens=3), version="1.0"))
    assert (streamed.status, streamed.framing) == (200, "close")
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    with front.connect() as wire:
        wire.send(get("/health", "Connection: keep-alive\r\n", version="1.0") * 2)
        assert wire.reply().is_closing
        assert wire.rest() == b""


def test_methods(front: Front) -> None:
    for path in ("/health", "/v1/models", f"/v1/models/{TEST_MODEL}"):
        asked, headed = front.ask(get(path)), front.ask(get(path, method="HEAD"), to_head=True)
        assert headed.status == asked.status == 200
        assert headed.headers["content-length"] == asked.headers["content-length"]
        assert headed.headers["content-type"] == asked.headers["content-type"]
    for method in ("TRACE", "GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
        refused = front.ask(get(COMPLETIONS, method=method))
        assert refused.error["code"] == "method_not_allowed"
        assert (refused.status, refused.headers["allow"]) == (405, "POST")
    with front.connect() as wire:  # nothing behind the answer to a HEAD
        wire.send(get("/v1/models", method="HEAD") + get("/health"))
        assert wire.reply(to_head=True).status == 200
        assert wire.reply().json["status"] == "healthy"
    tunnel = front.ask(b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n")
    assert tunnel.status in {400, 404, 405, 501}


def test_targets(front: Front) -> None:
    assert front.ask(get("http://daemon/health")).json["status"] == "healthy"
    for target in (
        "//evil.example/health",
        "/%00",
        "/%ff%fe",
        "/..%2f..%2fetc/passwd",
        "/../etc/passwd",
        "/v1/%",
        "/?\xe9",
    ):
        reply = front.ask(get(target))
        assert reply.status in {400, 404}, (target, reply)
        assert reply.error["message"]
    for target in ("/static/..%2f..%2f..%2fapplication.py", "/static/../front.py", "/docs/assets/%2e%2e%2fkeys.py"):
        assert front.ask(get(target)).status == 404, target
    assert front.ask(get("/v1/models/" + "%41" * 1000)).status == 404
    assert front.ask(b"OPTIONS * HTTP/1.1\r\nHost: daemon\r\n\r\n").status in {400, 404, 405}


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "unknown/1", "TLS/1.0"])
def test_upgrades_are_not_made(front: Front, protocol: str) -> None:
    more = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    with front.connect() as wire:
        wire.send(get("/health", more) + (b"" if protocol == "websocket" else get("/v1/models")))
        first = wire.reply()
        if protocol == "websocket":
            assert first.status in {400, 403, 404, 426}
            wire.socket.close()
            assert front.ask(post(COMPLETIONS, SMUGGLED, {"Connection": "Upgrade", "Upgrade": protocol})).status == 400
            return
        assert first.json["status"] == "healthy"
        # It is either gone on with, or ended: never is anything of it taken for another protocol.
        if not first.is_closing:
            assert wire.reply().json["object"] == "list"
    # With a body: Java's client offers h2c in every request.
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol}
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    whole = post(COMPLETIONS, asking(stream=False, max_tokens=1), headers)
    for data in (
        whole,
        post(COMPLETIONS, asking(max_tokens=1), headers),
        in_chunks(chunked(SMALL), f"Transfer-Encoding: chunked\r\n{fields}"),
        post(COMPLETIONS, SMUGGLED, headers),
        whole + SMUGGLED,
    ):
        for cut in (0, data.index(b"\r\n\r\n") + 4, len(data) - 5):
            with front.connect() as wire:
                wire.send(data[:cut])
                time.sleep(0.002)
                wire.send(data[cut:])
                reply = wire.reply()
                assert b"token_0" in reply.body or (
                    reply.status == 400 and data == post(COMPLETIONS, SMUGGLED, headers)
                )
                assert wire.rest() == b"", "the body was taken for a request"


def test_what_is_pipelined_is_answered_in_order(front: Front) -> None:
    with front.leaves_nothing(), front.connect() as wire:
        wire.send(
            b"".join(post(COMPLETIONS, asking(stream=False, max_tokens=n % 4)) + get("/health") for n in range(40))
        )
        for n in range(40):
            assert wire.reply().json["choices"][0]["text"] == tokens_of(n % 4)
            assert wire.reply().json["status"] == "healthy"


def test_what_is_pipelined_behind_a_stream_is_not_answered(front: Front) -> None:
    started = front.daemon.metric(STARTED)
    with front.leaves_nothing(), front.connect() as wire:
        wire.send(get("/health") + post(COMPLETIONS, asking(max_tokens=3)) + post(COMPLETIONS, asking(max_tokens=4)))
        assert wire.reply().json["status"] == "healthy"
        streamed = wire.reply()
        assert streamed.is_whole
        assert streamed.is_closing
        assert streamed.body.count(b"token_") == 3
        assert wire.rest() == b""
    front.daemon.wait_for_metric(STARTED, started + 1)  # a beginning may be told late


def test_a_client_that_waits_for_100_gets_it(front: Front) -> None:
    with front.connect() as wire:
        whole = post(COMPLETIONS, SMALL, {"Expect": "100-continue"})
        wire.send(whole[: -len(SMALL)])
        interim = wire.reply()
        assert interim.status == 100
        wire.send(SMALL)
        assert wire.reply().json["choices"][0]["text"] == tokens_of(1)


# ---- too much


def test_heads_that_are_too_large(front: Front) -> None:
    for data in (
        get("/health", "X-Long: " + "x" * HEAD_BYTES_MAX + "\r\n"),
        get("/" + "x" * HEAD_BYTES_MAX),
        get("/health", "X: y\r\n" * HEAD_BYTES_MAX),
        b"GET /" + b"x" * (1 << 16),  # without an end
    ):
        with front.connect() as wire:
            wire.send(data)
            reply = wire.reply()
            assert reply.status == 431, reply
            assert reply.error["message"]
            assert wire.rest() == b""
    assert front.ask(get("/health", "X-Long: " + "x" * (HEAD_BYTES_MAX - 100) + "\r\n")).status == 200


def test_what_is_refused_by_its_head_has_an_id(front: Front, impatient: Front) -> None:
    """Its own where the head is whole, otherwise a new one, and never that of the request before it."""
    with front.connect() as wire:
        wire.send(b"GET /health HTTP/1.1\r\nX-Request-Id: mine\r\n\r\n")
        refused = wire.reply()
        assert (refused.status, refused.headers["x-request-id"]) == (400, "mine")
    ids: set[str] = set()
    for late, status in (
        (get("/" + "x" * HEAD_BYTES_MAX), 431),
        (b"GET /hea", 408),
        (b"\r\n" * HEAD_BYTES_MAX, 431),
        (b"\0", 400),
    ):
        with (impatient if status == 408 else front).connect() as wire:
            wire.send(get("/health", "X-Request-Id: mine\r\n"))
            assert wire.reply().headers["x-request-id"] == "mine"
            wire.send(late)
            refused = wire.reply()
            assert refused.status == status
            ids.add(refused.headers["x-request-id"])
    assert len(ids) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_bodies_that_are_too_large(front: Front) -> None:
    large = json.dumps(asking(prompt="x" * (2 * BODY_BYTES_MAX))).encode()
    for data in (
        post(COMPLETIONS, large),
        in_chunks(chunked(*(large[index : index + 999] for index in range(0, len(large), 999)))),
        post(COMPLETIONS, b"", {"Content-Length": str(1 << 62)}),
        in_chunks(b"%x\r\n" % (1 << 40) + b"x" * (2 * BODY_BYTES_MAX)),
    ):
        with front.connect() as wire:
            wire.send(data)
            reply = wire.reply()
            assert (reply.status, reply.error["code"]) == (413, "body_too_large")
            assert wire.rest() == b""


BAD_JSON = {
    "empty": b"",
    "cut": b'{"model": "test-model", "prompt": "He',
    "invalid UTF-8": b'{"model": "test-model", "prompt": "\xff\xfe"}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf"}',
    "deep arrays": b"[" * 30_000,
    "deep objects": b'{"a":' * 6_000,
    "deep and whole": b'{"x":' + b"[" * 15_000 + b"]" * 15_000 + b"}",
    "null": b"null",
    "an array": b"[{}]",
    "NaN": b'{"model": "test-model", "temperature": NaN}',
    "Infinity": b'{"model": "test-model", "temperature": Infinity}',
    "a huge number": b'{"model": "test-model", "max_tokens": ' + b"9" * 20_000 + b"}",
    "a huge exponent": b'{"model": "test-model", "max_tokens": 1e999}',
    "beyond 64 bits": b'{"model": "test-model", "seed": 18446744073709551616}',
    "a control byte": b'{"model": "test-model", "prompt": "\x01"}',
    "two values": b'{"model": "test-model"}{}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "test-model"}',
    "UTF-16": '{"model": "test-model"}'.encode("utf-16"),
    "half a surrogate pair": b'{"model": "test-model", "prompt": "\\ud800"}',
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_wrong(front: Front, name: str, path: str) -> None:
    with front.connect() as wire:
        wire.send(post(path, BAD_JSON[name]))
        reply = wire.reply()
        assert reply.status == 400, reply
        assert reply.error["type"] == "invalid_request_error"
        assert len(reply.body) < 1000
        wire.send(get("/health"))  # the connection goes on
        assert wire.reply().status == 200


# ---- too slow


def test_heads_that_do_not_come(impatient: Front) -> None:
    with impatient.leaves_nothing():
        begun = [impatient.connect() for _ in range(30)]
        for index, wire in enumerate(begun):
            wire.send(b"" if index % 3 == 0 else b"GET /hea" if index % 3 == 1 else get("/health", "X: y")[:-4])
        dribbling = impatient.connect()
        for byte in get("/health", "X-Slow: " + "x" * 10_000 + "\r\n"):  # for longer than any answer takes
            if _readable(dribbling.socket):
                break
            dribbling.send(bytes([byte]))
            time.sleep(0.02)
        begun.append(dribbling)
        for index, wire in enumerate(begun):
            with wire:
                answer = wire.rest()  # which does not wait for ever
                assert answer == b"" if index % 3 == 0 and wire is not dribbling else b" 408 " in answer[:20]


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_bodies_that_do_not_come(impatient: Front, framing: str) -> None:
    with impatient.leaves_nothing(), impatient.connect() as wire:
        started_s = time.monotonic()
        if framing == "length":
            wire.send(post(COMPLETIONS, SMALL)[: -len(SMALL)])
        else:
            wire.send(in_chunks(b"%x\r\n" % len(SMALL)))
        for byte in SMALL[:-1]:
            if _readable(wire.socket):
                break
            wire.send(bytes([byte]))
            time.sleep(0.05)
        reply = wire.reply()
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")
        assert wire.rest() == b""
        assert BODY_TIMEOUT_MS / 1000 <= time.monotonic() - started_s < BODY_TIMEOUT_MS / 1000 + LATE_S_MAX


def _readable(client: socket.socket) -> bool:
    """Whether something has come, or its end."""
    return bool(select.select([client], [], [], 0)[0])


def test_idle_connections_are_closed(impatient: Front) -> None:
    with impatient.leaves_nothing(), impatient.connect() as wire:
        wire.send(get("/health"))
        assert wire.reply().status == 200
        started_s = time.monotonic()
        assert wire.rest() == b""
        assert 1 <= time.monotonic() - started_s < LATE_S_MAX


# ---- cut


REQUESTS = {
    "whole": post(COMPLETIONS, asking(stream=False, max_tokens=1)),
    "streamed": post(COMPLETIONS, asking(max_tokens=1)),
    "chunked": in_chunks(chunked(SMALL[:20], SMALL[20:])),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("end", ["close", "reset", "half"])
def test_requests_cut_at_every_byte_leave_nothing(front: Front, name: str, end: str) -> None:
    data = REQUESTS[name]
    with front.leaves_nothing():
        for length in range(len(data)):
            with front.connect() as wire:
                wire.send(data[:length])
                if end == "half":
                    wire.socket.shutdown(socket.SHUT_WR)
                    assert b" 200 " not in wire.rest()[:20]
                elif end == "reset":
                    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    front.is_well()


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_in_two_pieces_are_whole(front: Front, name: str) -> None:
    data = REQUESTS[name]
    with front.leaves_nothing():
        for length in range(1, len(data), 3):
            with front.connect() as wire:
                wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire.send(data[:length])
                time.sleep(0.001)
                wire.send(data[length:])
                reply = wire.reply()
                assert reply.is_whole
                assert b"token_0" in reply.body
