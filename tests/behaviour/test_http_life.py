"""The HTTP front from its start to its end: keys that change and are never shown, limits, a drain in mid-stream."""

from __future__ import annotations

import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import DefaultHttpxClient, OpenAI

from tests.behaviour.http_helpers import (
    CHAT,
    COMPLETIONS,
    TEST_MODEL,
    Front,
    Wire,
    asking,
    get,
    http_config,
    post,
    relayed,
    serving,
    tls,
    tokens_of,
)
from tests.upstream import Gate, Plan, Upstream, openai_stream

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

ALICE, BOB, NOBODY = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef", "sk-nobody-0123456789abcdef"
SLOWLY = "[backend.test_model]\ntokens_per_second = 20\n"


@contextlib.contextmanager
def client_of(front: Front, key: str = "unused", retries: int = 0) -> Generator[OpenAI]:
    """The official client."""
    with DefaultHttpxClient() as http:
        yield OpenAI(base_url=front.base, api_key=key, max_retries=retries, timeout=20.0, http_client=http)


def write_keys(path: Path, text: str) -> None:
    """The file, which only its owner may read."""
    path.touch(mode=0o600)
    path.write_text(text)


def test_keys_are_asked_for_change_and_are_never_shown(kernel: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, f"alice: {ALICE}\n")
    with Upstream() as upstream:
        upstream.answer("some-model", Plan(openai_stream(["Hello"])))
        other = relayed(upstream, {"some-model": "upstream"})
        configuration = http_config({"api_keys_file": str(keys)}, other, backend="openai")
        with serving(kernel, tmp_path, configuration, "--log-level", "debug") as front:
            with client_of(front, ALICE) as client:
                assert client.completions.create(model=TEST_MODEL, prompt="", max_tokens=1).choices[0].text
                said: Any = [{"role": "user", "content": "Hello"}]
                answer = client.chat.completions.create(model="some-model", messages=said)
                assert answer.choices[0].message.content == "Hello"
            for key in (BOB, NOBODY, "short", ""):
                for stream in (False, True):
                    refused = front.post(COMPLETIONS, asking(stream), {"Authorization": f"Bearer {key}"})
                    assert (refused.status, refused.error["type"]) == (401, "authentication_error"), refused
                    assert refused.headers["www-authenticate"].startswith("Bearer")
                    assert key == "" or key.encode() not in refused.body
            with client_of(front, NOBODY) as client, pytest.raises(openai.AuthenticationError) as failed:
                client.models.list()
            assert failed.value.code == "invalid_api_key"
            write_keys(keys, f"bob: {BOB}\n")
            _reload(front, "ok")
            assert front.ask(get("/v1/models", f"Authorization: Bearer {BOB}\r\n")).status == 200
            assert front.ask(get("/v1/models", f"Authorization: Bearer {ALICE}\r\n")).status == 401
            write_keys(keys, f"bob {NOBODY}\n")  # no such line: the keys in force stay
            _reload(front, "failed")
            assert "the keys in force stay" in front.daemon.log
            assert front.ask(get("/v1/models", f"Authorization: Bearer {BOB}\r\n")).status == 200
            shown = b"".join(front.ask(get(path)).body for path in ("/ready", "/metrics", "/health", "/openapi.json"))
            for key in (ALICE, BOB, NOBODY):
                assert key not in front.daemon.log
                assert key.encode() not in shown
                assert all(key not in str(request.headers) for request in upstream.requests())


def _reload(front: Front, result: str) -> None:
    assert front.daemon.process is not None
    front.daemon.process.send_signal(signal.SIGHUP)
    front.daemon.wait_for_metric(f'streaming_daemon_config_reloads_total{{result="{result}"}}', 1)


@contextlib.contextmanager
def ends_once_refused(front: Front, held: Wire, status: int) -> Generator[None]:
    """The stream that is held ends when another request has been refused because of it."""
    name = f'streaming_daemon_http_requests_total{{method="POST",route="{COMPLETIONS}",status="{status}"}}'
    before = front.daemon.metric(name)

    def end() -> None:
        front.daemon.wait_for_metric(name, before + 1)
        held.socket.close()

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end)
        yield
        ending.result()


def test_the_official_client_waits_as_long_as_a_429_says(kernel: str, tmp_path: Path) -> None:
    configuration = http_config(None, f"{SLOWLY}[limits]\nstreams_per_user = 1")
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(serving(kernel, tmp_path, configuration))
        with client_of(front) as client, front.connect() as held:
            held.send(post(COMPLETIONS, asking(max_tokens=10_000)))  # for minutes
            assert held.socket.recv(16)
            with pytest.raises(openai.RateLimitError) as failed:
                client.completions.create(model=TEST_MODEL, prompt="")
            assert failed.value.code == "streams_per_user"
            assert int(failed.value.response.headers["retry-after"]) >= 1
            assert "ratelimit" in failed.value.response.headers
            started_s = time.monotonic()
            with ends_once_refused(front, held, 429):
                patient = client.with_options(max_retries=4)
                answer = patient.completions.create(model=TEST_MODEL, prompt="", max_tokens=1)
            assert answer.choices[0].text == tokens_of(1)
            assert time.monotonic() - started_s >= int(failed.value.response.headers["retry-after"]) * 0.9


def test_the_official_client_comes_back_after_a_503(kernel: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(serving(kernel, tmp_path, http_config(None, SLOWLY), "--max-connections", "1"))
        with client_of(front) as client, front.connect() as held:
            held.send(post(COMPLETIONS, asking(max_tokens=10_000)))
            assert held.socket.recv(16)
            with pytest.raises(openai.InternalServerError) as failed:
                list(client.completions.create(model=TEST_MODEL, prompt="", stream=True))
            assert failed.value.status_code == 503
            assert int(failed.value.response.headers["retry-after"]) >= 1
            with ends_once_refused(front, held, 503):
                patient = client.with_options(max_retries=4)
                answer = patient.completions.create(model=TEST_MODEL, prompt="", max_tokens=1)
            assert answer.choices[0].text == tokens_of(1)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_drain_lets_streams_finish_and_takes_nobody_new(kernel: str, tmp_path: Path, scheme: str) -> None:
    http = tls() if scheme == "https" else {}
    gate = Gate()
    with Upstream() as upstream:
        events = openai_stream(["a", "b", "c"])
        upstream.answer("some-model", Plan([*events[:2], gate, *events[2:]]))
        configuration = http_config(http, relayed(upstream, {"some-model": "upstream"}), backend="openai")
        with serving(kernel, tmp_path, configuration) as front, contextlib.ExitStack() as stack:
            said = {"model": "some-model", "messages": [{"role": "user", "content": "Hello"}]}
            streamed, whole, idle, begun = (stack.enter_context(front.connect()) for _ in range(4))
            streamed.send(post(CHAT, {**said, "stream": True}))
            whole.send(post(CHAT, said))
            idle.send(get("/health"))
            assert idle.reply().status == 200
            late = post(COMPLETIONS, asking(max_tokens=1), {"Expect": "100-continue"})
            body = late.partition(b"\r\n\r\n")[2]
            begun.send(late[: -len(body)])
            assert begun.reply().status == 100, "the daemon waits for the rest of a request that has begun"
            upstream.wait_for_requests(2)
            assert front.daemon.process is not None
            front.daemon.process.send_signal(signal.SIGTERM)
            assert idle.rest() == b"", "an idle connection is closed"
            with pytest.raises(ConnectionError):
                front.connect()
            begun.send(body)
            refused = begun.reply()
            assert (refused.status, refused.error["type"]) == (503, "service_unavailable"), refused
            gate.open()
            reply = streamed.reply()
            assert reply.is_whole
            assert reply.body.endswith(b"data: [DONE]\n\n")
            assert whole.reply().json["choices"][0]["message"]["content"] == "abc"
            assert front.daemon.process.wait(20) == 0
