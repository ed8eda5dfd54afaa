"""Streams through a real Apache with mod_php: what a client gets, and what becomes of Apache's workers."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from tests.apache.environment import WORKER_COUNT, Apache, running_daemon

pytestmark = pytest.mark.apache

# The head of every stream, byte for byte: clients of the daemons that this one replaces rely on it.
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Connection: close\r\n"
    b"X-Accel-Buffering: no\r\n"
    b"\r\n"
)
MESSAGE_COUNT = 18
PROMPT = 'Grüße, "world"\n{}\\'


def stream_url(apache: Apache, prompt: str = PROMPT) -> str:
    return f"{apache.base_url}/stream.php?{urllib.parse.urlencode({'prompt': prompt})}"


def handoff_path(socket_path: Path | str, **parameters: str) -> str:
    """The path of the test's own script, which hands off to any socket with any data."""
    return f"/handoff.php?{urllib.parse.urlencode({'socket': str(socket_path), **parameters})}"


def curl(*arguments: str) -> bytes:
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--include", "--max-time", "30", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def split_response(response: bytes) -> tuple[bytes, bytes]:
    head, separator, body = response.partition(b"\r\n\r\n")
    return head + separator, body


def contents_of(body: bytes) -> list[str]:
    """The text of each message of a complete stream; anything else in the body is an error."""
    events = body.decode().split("\n\n")
    assert events.pop() == "", "the body ends within an event"
    assert events.pop() == "data: [DONE]", "the stream is not complete"
    contents: list[str] = []
    for event in events:
        assert event.startswith("data: "), event
        message = json.loads(event.removeprefix("data: "))
        assert list(message) == ["content"]
        contents.append(message["content"])
    return contents


def get(
    apache: Apache, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", apache.port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


# ---------------------------------------------------------------------------------------------------- complete streams


def check_complete_stream(response: bytes, prompt: str) -> None:
    head, body = split_response(response)
    assert head == STREAM_HEAD
    contents = contents_of(body)
    assert len(contents) == MESSAGE_COUNT
    assert f"Prompt: {prompt}" in contents[0]
    assert "User ID: 1" in contents[1]
    for number in range(13, 18):
        assert f"This is message {number} of {MESSAGE_COUNT}." in contents[number - 1]
    assert "[DONE-CONTENT]" in contents[-1]


def test_curl_gets_the_whole_stream_by_get(site: Apache) -> None:
    check_complete_stream(curl(stream_url(site)), PROMPT)


def test_curl_gets_the_whole_stream_by_post(site: Apache) -> None:
    request = json.dumps({"prompt": PROMPT})
    url = f"{site.base_url}/stream.php"
    check_complete_stream(curl("--header", "Content-Type: application/json", "--data-binary", request, url), PROMPT)


def test_a_handoff_without_data_is_answered(site: Apache) -> None:
    _head, body = get(site, handoff_path(site.default_socket))
    assert len(contents_of(body)) == MESSAGE_COUNT


def test_what_the_application_wrote_does_not_reach_the_client(site: Apache) -> None:
    path = handoff_path(site.default_socket, data='{"prompt":"x"}', output_count="10000")
    head, body = split_response(curl(site.base_url + path))
    assert head == STREAM_HEAD
    assert len(contents_of(body)) == MESSAGE_COUNT


def test_messages_arrive_as_they_are_sent(site: Apache) -> None:
    """Nothing between the daemon and the client waits for more: the first message is there long before the last."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as client:
        path = urllib.parse.urlsplit(stream_url(site))
        client.sendall(f"GET {path.path}?{path.query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        pieces = list(iter(lambda: client.recv(65536), b""))
    assert len(pieces) >= MESSAGE_COUNT // 2
    assert len(contents_of(split_response(b"".join(pieces))[1])) == MESSAGE_COUNT


def test_a_large_handoff_arrives_whole(site: Apache) -> None:
    padding = "x" * 7000
    response, body = get(
        site, handoff_path(site.default_socket, data=json.dumps({"prompt": "hello", "padding": padding}))
    )
    assert response.status == 200
    assert "Prompt: hello" in contents_of(body)[0]


# ------------------------------------------------------------------------------------------------------------- workers


def test_many_streams_on_few_workers_take_one_streams_time(apache: Apache) -> None:
    stream_count = 5 * WORKER_COUNT
    path = apache.socket_folder / "slow.sock"

    def stream_seconds() -> float:
        start = time.monotonic()
        _response, body = get(apache, handoff_path(path, data='{"user_id":1,"prompt":"one of many"}'))
        assert len(contents_of(body)) == MESSAGE_COUNT
        return time.monotonic() - start

    with running_daemon(path, delay_ms=50), ThreadPoolExecutor(stream_count + 1) as pool:
        one_alone = stream_seconds()
        started = time.monotonic()
        streams = [pool.submit(stream_seconds) for _ in range(stream_count)]
        # In the middle of the streams an ordinary page is served at once, so the workers really are free.
        time.sleep(one_alone / 2)
        page_start = time.monotonic()
        assert get(apache, "/index.html")[0].status == 200
        page_seconds = time.monotonic() - page_start
        slowest = max(stream.result() for stream in streams)
        all_together = time.monotonic() - started
    # Workers that a stream held would take five rounds of one stream's time.
    assert one_alone >= 17 * 0.050
    assert all_together < 2 * one_alone, f"one alone {one_alone:.2f} s, the slowest of {stream_count} {slowest:.2f} s"
    assert page_seconds < one_alone / 2


def test_a_worker_serves_again_after_its_handoff(site: Apache) -> None:
    for _ in range(3 * WORKER_COUNT):
        check_complete_stream(curl(stream_url(site)), PROMPT)
    assert "exit signal" not in site.error_log()


def test_a_handed_over_connection_is_logged_once(site: Apache) -> None:
    before = len(site.requests_logged("/stream.php"))
    curl(stream_url(site))
    assert site.requests_logged("/stream.php")[before:] == ["GET /stream.php 200"]


# -------------------------------------------------------------------------------------------------------------- errors


def check_no_handoff_headers(response: HTTPResponse) -> None:
    assert not [name for name, _value in response.getheaders() if "handoff" in name.lower()]


def test_503_while_the_daemon_is_down(apache: Apache) -> None:
    response, body = get(apache, handoff_path(apache.socket_folder / "nobody.sock", data="{}"))
    assert response.status == 503
    assert b"<h1>503 Service Unavailable</h1>" in body
    check_no_handoff_headers(response)


def test_503_at_once_while_the_backlog_is_full(apache: Apache) -> None:
    path = apache.socket_folder / "backlog.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ExitStack() as waiting:
        listener.bind(str(path))
        listener.listen(0)
        path.chmod(0o666)
        while True:
            client = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
            if client.connect_ex(str(path)) == errno.EAGAIN:
                break
        assert get(apache, handoff_path(path))[0].status == 503


def test_503_when_a_dead_daemon_left_its_socket(apache: Apache) -> None:
    path = apache.socket_folder / "dead.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
    path.chmod(0o666)
    assert get(apache, handoff_path(path))[0].status == 503


def test_the_daemon_is_found_again_after_a_restart(apache: Apache) -> None:
    path = apache.socket_folder / "restarted.sock"
    for _ in range(2):
        assert get(apache, handoff_path(path))[0].status == 503
        with running_daemon(path):
            assert len(contents_of(get(apache, handoff_path(path))[1])) == MESSAGE_COUNT
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("path", ["/etc/passwd", "relative.sock", "/tmp/elsewhere.sock", "/nonexistent/folder/x.sock"])
def test_403_outside_the_allowed_folder(apache: Apache, path: str) -> None:
    response, body = get(apache, handoff_path(path, data="{}"))
    assert response.status == 403
    assert b"<h1>403 Forbidden</h1>" in body
    check_no_handoff_headers(response)


def test_403_where_the_path_only_seems_to_be_inside(apache: Apache) -> None:
    folder = apache.socket_folder
    neighbour = folder.with_name(folder.name + "-neighbour")
    neighbour.mkdir()
    for path in (f"{folder}/../elsewhere.sock", neighbour / "x.sock", f"{neighbour}2/x.sock"):
        assert get(apache, handoff_path(path))[0].status == 403, path


def test_a_link_inside_the_folder_is_followed_out_of_it(apache: Apache) -> None:
    elsewhere = apache.root / "elsewhere.sock"
    (apache.socket_folder / "link.sock").symlink_to(elsewhere)
    with running_daemon(elsewhere):
        _response, body = get(apache, handoff_path(apache.socket_folder / "link.sock"))
    assert len(contents_of(body)) == MESSAGE_COUNT


def test_head_is_handed_over_and_therefore_refused_by_stream_php(site: Apache) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as client:
        client.sendall(f"HEAD {handoff_path(site.default_socket)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert len(contents_of(split_response(answer)[1])) == MESSAGE_COUNT
    response, body = get(site, "/stream.php?prompt=x", method="HEAD")
    assert (response.status, body) == (405, b"")


def test_the_daemons_503_reaches_the_client(apache: Apache) -> None:
    path = apache.socket_folder / "full.sock"
    with running_daemon(path, "--max-connections", "1", delay_ms=5000):
        held = HTTPConnection("127.0.0.1", apache.port, timeout=30)
        held.request("GET", handoff_path(path))
        # Kept: the answer owns the connection, and a client that is collected is a client that has left.
        answer = held.getresponse()
        assert answer.status == 200
        response, body = get(apache, handoff_path(path, data='{"prompt":"one too many"}'))
        answer.close()
        held.close()
    assert response.status == 503
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["Content-Type"] == "application/problem+json"
    assert json.loads(body)["status"] == 503


def test_the_daemons_429_reaches_the_client(apache: Apache) -> None:
    path = apache.socket_folder / "limited.sock"
    configuration = path.with_suffix(".toml")
    configuration.write_text("[limits]\nrequests_per_minute_per_user = 1\n")
    data = '{"user_id":7,"prompt":"again"}'
    with running_daemon(path, "--config", str(configuration)):
        assert get(apache, handoff_path(path, data=data))[0].status == 200
        response, body = get(apache, handoff_path(path, data=data))
        other_user, _ = get(apache, handoff_path(path, data=data.replace("7", "8")))
    assert response.status == 429
    assert json.loads(body)["status"] == 429
    assert other_user.status == 200


def test_the_daemons_400_reaches_the_client(site: Apache) -> None:
    response, body = get(site, handoff_path(site.default_socket, data="{not json"))
    assert response.status == 400
    assert json.loads(body)["status"] == 400


# --------------------------------------------------------------------------------------------- what stream.php refuses


def test_stream_php_refuses_bad_requests(site: Apache) -> None:
    json_type = "application/json"
    refusals: list[tuple[int, str, dict[str, str]]] = [
        (400, "/stream.php", {}),
        (400, "/stream.php?prompt=%20", {}),
        (400, "/stream.php?prompt=%ff", {}),
        (400, "/stream.php?prompt[]=x", {}),
        (413, "/stream.php", {"method": "POST", "body": "x" * 70_000, "Content_Type": json_type}),
        (415, "/stream.php", {"method": "POST", "body": '{"prompt":"x"}', "Content_Type": "text/plain"}),
        (400, "/stream.php", {"method": "POST", "body": '"x"', "Content_Type": json_type}),
        (400, "/stream.php", {"method": "POST", "body": '{"prompt":["x"]}', "Content_Type": json_type}),
        (413, "/stream.php", {"method": "POST", "body": json.dumps({"prompt": "x" * 8193}), "Content_Type": json_type}),
        (405, "/stream.php?prompt=x", {"method": "PUT"}),
        (403, "/stream.php?prompt=x", {"Sec_Fetch_Site": "cross-site"}),
    ]
    for status, path, request in refusals:
        response, body = get(site, path, **request)
        assert response.status == status, (path[:40], request)
        assert json.loads(body)["status"] == status
        check_no_handoff_headers(response)
