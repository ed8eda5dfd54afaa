"""Backends on worker threads: truthful ends whatever they do, backpressure, the queue, keep-alives, limits per user."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, Daemon, read_all
from tests.behaviour.test_faults import ended
from tests.behaviour.test_streams import assert_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BACKENDS = "".join(
    f'[backend.{name.lower()}]\nclass = "example_backends:{name}"\n'
    for name in ("Raises", "Hangs", "Large", "Many", "Silent", "Wrong")
)


@pytest.fixture(name="backends", scope="module")
def _backends(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with all of them, for tests that ask for no more."""
    running = Daemon(tmp_path_factory.mktemp("backends"), kernel, configuration=BACKENDS).start()
    yield running
    assert running.stop() == 0, running.log[-4000:]


def error_of(body: bytes) -> dict[str, object]:
    """The error event at the end of a stream that was cut."""
    block = body.rstrip(b"\n").rpartition(b"\n\n")[2].decode()
    event, _, data = block.partition("\n")
    assert event == "event: error"
    error: dict[str, object] = json.loads(data.removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not body.endswith(DONE)
    return error


def test_every_backend_can_run_on_the_pool(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--delay", "5", "--thread-pool", "--pool-size", "4")
    clients = [daemon.open({"prompt": "x", "user_id": n}) for n in range(12)]
    for client in clients:
        assert_whole(read_all(client))
        client.close()
    assert daemon.metric("streaming_daemon_queue_wait_seconds_count") == 12


def test_an_exception_before_the_first_byte_is_a_500(backends: Daemon) -> None:
    logged = len(backends.log)
    answer = backends.ask({"backend": "raises", "prompt": "before"})
    assert answer.status == 500
    assert b"secret" not in answer.raw
    assert answer.problem["title"]
    assert "ValueError" in backends.log[logged:]


def test_an_exception_after_the_first_byte_is_an_error_event(backends: Daemon) -> None:
    backends.wait_idle()
    before = backends.metric(ended("backend_error"))
    answer = backends.ask({"backend": "raises", "prompt": "after"})
    assert answer.head == HEAD
    assert answer.contents == ["first"]
    error_of(answer.body)
    assert b"secret" not in answer.raw
    backends.wait_for_metric(ended("backend_error"), before + 1)


def test_a_piece_that_is_neither_text_nor_bytes_is_an_error(backends: Daemon) -> None:
    assert backends.ask({"backend": "wrong"}).status == 500
    assert "yielded int" in backends.log


def test_a_backend_that_never_speaks_gets_a_504(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + "[timeouts]\nfirst_byte_timeout_ms = 200\n")
    assert daemon.ask({"backend": "hangs"}).status == 504
    daemon.wait_for_metric(ended("first_byte_timeout"), 1)


def test_a_backend_that_falls_silent_is_cut_with_an_error(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + "[timeouts]\nsilence_timeout_ms = 200\n")
    answer = daemon.ask({"backend": "hangs", "prompt": "after"})
    assert answer.contents == ["first"]
    error_of(answer.body)
    daemon.wait_for_metric(ended("silence_timeout"), 1)


def test_a_client_that_leaves_stops_its_backend(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS, "--pool-size", "1")
    for _ in range(3):
        client = daemon.open({"backend": "hangs"}, tcp=True)
        daemon.wait_for_metric("streaming_daemon_connections_active", 1)
        client.close()
        daemon.wait_idle()
    daemon.wait_for_metric(ended("client_gone"), 3)
    assert daemon.ask({"backend": "many"}).body.endswith(DONE)


@pytest.mark.parametrize("tcp", [True, False])
def test_megabytes_at_once(backends: Daemon, tcp: bool) -> None:
    answer = backends.ask({"backend": "large"}, tcp=tcp)
    expected = b"".join(
        b"data: %d" % n + b"x" * (1 << 20) + b"\n\n" + b'data: {"content":"small %d"}\n\n' % n for n in range(8)
    )
    assert answer.body == expected + DONE


def test_very_many_small_pieces(backends: Daemon) -> None:
    answer = backends.ask({"backend": "many"})
    assert answer.body == b"".join(b'data: {"content":"piece %d"}\n\n' % n for n in range(20_000)) + DONE


def test_keep_alives_fill_a_silence(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + "[streaming]\nkeep_alive_ms = 300\n")
    began_s = time.monotonic()
    body = daemon.ask({"backend": "silent"}).body
    assert 1 <= body.count(b": keep-alive\n\n") <= (time.monotonic() - began_s) / 0.3
    assert body.replace(b": keep-alive\n\n", b"") == (
        b'data: {"content":"before"}\n\ndata: {"content":"after"}\n\n' + DONE
    )


def test_keep_alives_before_the_first_byte_bring_the_head(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + "[streaming]\nkeep_alive_ms = 200\n[timeouts]\nfirst_byte_timeout_ms = 3000\n")
    answer = daemon.ask({"backend": "hangs", "response_headers": {"X-Kept": "yes"}})
    assert answer.status == 200
    assert answer.headers["x-kept"] == "yes"
    assert b": keep-alive\n\n" in answer.body
    error_of(answer.body)


def test_the_queue_is_bounded_and_waits_no_longer_than_its_deadline(start: Callable[..., Daemon]) -> None:
    daemon = start(
        BACKENDS + "[timeouts]\nqueue_timeout_ms = 3000\n[thread_pool]\npool_size = 1\nqueue_count_max = 2\n"
    )
    first = daemon.open({"backend": "hangs"})
    daemon.wait_for_metric("streaming_daemon_queue_wait_seconds_count", 1)
    waiting = [daemon.open({"backend": "hangs"}) for _ in range(2)]
    daemon.wait_for_metric("streaming_daemon_queue_length", 2)
    refused = daemon.ask({"backend": "hangs"})
    assert refused.status == 503
    assert "retry-after" in refused.headers
    for client in waiting:
        answer = read_all(client)
        assert answer.status == 503
        client.close()
    daemon.wait_for_metric(ended("queue_timeout"), 2)
    first.close()
    daemon.wait_idle()


def test_a_client_that_leaves_the_queue_is_forgotten(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + "[thread_pool]\npool_size = 1\n")
    first = daemon.open({"backend": "hangs"})
    daemon.wait_for_metric("streaming_daemon_queue_wait_seconds_count", 1)
    second = daemon.open({"backend": "many"}, tcp=True)
    daemon.wait_for_metric("streaming_daemon_queue_length", 1)
    second.close()
    daemon.wait_for_metric(ended("client_gone"), 1)
    first.close()
    daemon.wait_idle()
    assert daemon.ask({"backend": "many"}).body.endswith(DONE)


def test_streams_per_user(start: Callable[..., Daemon]) -> None:
    daemon = start("[limits]\nstreams_per_user = 2\n", "--delay", "1000")
    held = [daemon.open({"user_id": 5}) for _ in range(2)]
    daemon.wait_for_metric("streaming_daemon_connections_active", 2)
    refused = daemon.ask({"user_id": 5})
    assert refused.status == 429
    assert "retry-after" in refused.headers
    with daemon.open({"user_id": 6}) as other:
        assert other.recv(15) == b"HTTP/1.1 200 OK"
    for client in held:
        client.close()
    daemon.wait_idle()
    with daemon.open({"user_id": 5}) as again:
        assert again.recv(15) == b"HTTP/1.1 200 OK"


def test_requests_per_minute(start: Callable[..., Daemon]) -> None:
    daemon = start("[limits]\nrequests_per_minute_per_user = 3\n", "--delay", "0")
    assert [daemon.ask({"user_id": 5}).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert daemon.ask({"user_id": 6}).status == 200


def test_peers_that_may_not_hand_over(start: Callable[..., Daemon]) -> None:
    daemon = start("[server]\nallowed_uids = [54321]\n")
    assert daemon.ask().status == 403


def test_a_whole_stream_has_a_deadline(start: Callable[..., Daemon]) -> None:
    daemon = start("[timeouts]\nstream_timeout_ms = 1500\n", "--delay", "500")
    answer = daemon.ask()
    assert 1 <= len(answer.contents) <= 4
    error_of(answer.body)
    daemon.wait_for_metric(ended("stream_timeout"), 1)


@pytest.mark.parametrize("tcp", [True, False])
def test_zero_copy_sends_deliver_the_same_bytes(start: Callable[..., Daemon], tcp: bool) -> None:
    daemon = start(BACKENDS + "[performance]\nzero_copy_bytes_min = 65536\n")
    for _ in range(3):
        answer = daemon.ask({"backend": "large"}, tcp=tcp)
        assert answer.body.count(b"x") == 8 << 20
        assert answer.body.endswith(DONE)
    client = daemon.open({"backend": "large"}, tcp=tcp)
    client.recv(1000)
    client.close()
    daemon.wait_idle()


def test_the_kernels_own_poller_serves_streams(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS, "--sqpoll", "--delay", "2")
    clients = [daemon.open({"user_id": n}, tcp=n % 2 == 0) for n in range(60)]
    for client in clients:
        assert_whole(read_all(client))
        client.close()
    assert daemon.ask({"backend": "many"}).body.endswith(DONE)
    daemon.wait_idle()
