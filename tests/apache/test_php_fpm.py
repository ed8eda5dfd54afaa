"""The example site as Debian runs PHP-FPM: the event MPM, mod_proxy_fcgi, and HTTP/2, which prefork does not have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest

from tests.apache.environment import WORKER_COUNT, Site, running_daemon, running_site
from tests.apache.test_apache import (
    MESSAGE_COUNT,
    PROMPT,
    check_complete_stream,
    contents_of,
    curl,
    get,
    handoff_path,
    split_response,
    stream_url,
)
from tests.apache.test_connections import STREAM, check_refusal

pytestmark = pytest.mark.apache


@pytest.fixture(scope="module")
def fpm() -> Iterator[Site]:
    with running_site("php-fpm") as running, running_daemon(running.default_socket):
        yield running


def test_the_whole_stream_comes_by_get_and_by_post(fpm: Site) -> None:
    check_complete_stream(curl(stream_url(fpm)), PROMPT)
    posted = ["--header", "Content-Type: application/json", "--data-binary", json.dumps({"prompt": PROMPT})]
    check_complete_stream(curl(*posted, f"{fpm.base_url}/stream.php"), PROMPT)


def test_streams_hold_neither_php_nor_apache(fpm: Site) -> None:
    path = fpm.socket_folder / "slow.sock"
    count = 10 * WORKER_COUNT
    with running_daemon(path, delay_ms=50), ThreadPoolExecutor(count) as pool:
        streams = [pool.submit(get, fpm, handoff_path(path)) for _ in range(count)]
        answers = [stream.result()[1] for stream in streams]
    assert [len(contents_of(answer)) for answer in answers] == [MESSAGE_COUNT] * count


def post(fpm: Site, prompt: str) -> tuple[int, bytes]:
    body = json.dumps({"prompt": prompt})
    response, answer = get(fpm, "/stream.php", "POST", body, Content_Type="application/json")
    return response.status, answer


def test_a_handoff_longer_than_a_header_of_fastcgi_is_refused(fpm: Site) -> None:
    # A line of 8,189 bytes is the longest that mod_proxy_fcgi reads: what is refused here would not have passed.
    room = 8189 - len('X-Handoff-Data: {"user_id":1,"prompt":""}')
    for prompt in ("x" * room, "ü" * (room // 6)):
        status, answer = post(fpm, prompt)
        assert (status, len(contents_of(answer))) == (200, MESSAGE_COUNT)
    for prompt in ("x" * (room + 1), "ü" * (room // 6 + 1), "ü" * 4096):
        status, answer = post(fpm, prompt)
        assert status == 413
        assert "may have 8173 bytes" in json.loads(answer)["detail"]


def test_the_longest_header_that_fastcgi_takes_is_that_long(fpm: Site) -> None:
    """Where this fails with a newer Apache, stream.php refuses too much or too little."""
    longest = 8189 - len("X-Handoff-Data: ")
    for length, status in ((longest, 200), (longest + 1, 500)):
        data = '{"prompt":"x"' + "}".rjust(length - len('{"prompt":"x"'))
        form = urlencode({"socket": str(fpm.default_socket), "data": data})
        response, _answer = get(fpm, "/handoff.php", "POST", form, Content_Type="application/x-www-form-urlencoded")
        assert response.status == status


@pytest.mark.parametrize(
    ("port", "options", "names"),
    [
        ("tls_port", ["--http1.1"], ["TLS"]),
        ("tls_port", ["--http2"], ["TLS", "HTTP/2"]),
        ("proxied_port", ["--http2-prior-knowledge"], ["HTTP/2"]),
        ("proxied_port", ["--http2"], ["HTTP/2"]),
    ],
    ids=["tls", "h2", "h2c", "upgraded"],
)
def test_stream_php_refuses_tls_and_http2(fpm: Site, port: str, options: list[str], names: list[str]) -> None:
    scheme = "https" if port == "tls_port" else "http"
    response = curl("--cacert", str(fpm.certificate), *options, f"{scheme}://localhost:{getattr(fpm, port)}{STREAM}")
    # An upgraded connection has the 101 before the answer.
    if response.startswith(b"HTTP/1.1 101"):
        response = split_response(response)[1]
    assert response.startswith(b"HTTP/2" if "HTTP/2" in names else b"HTTP/1.1")
    check_refusal(response, *names)


def test_the_module_itself_refuses_http2(fpm: Site) -> None:
    path = handoff_path(fpm.default_socket)
    head, body = split_response(curl("--http2-prior-knowledge", f"http://127.0.0.1:{fpm.proxied_port}{path}"))
    assert head.startswith(b"HTTP/2 500")
    assert b"<h1>500 Internal Server Error</h1>" in body
