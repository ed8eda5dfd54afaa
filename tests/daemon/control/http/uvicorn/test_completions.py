"""Both endpoints, on a real server: what they stream, what they put together, and each error."""

from __future__ import annotations

import gc
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from daemon.control.http.api.errors import ApiError
from daemon.control.http.api.model_routing import Router, Served, UpstreamModels
from tests.daemon.control.http.uvicorn.fakes import (
    CHAT_EVENTS,
    CUT,
    TEXT_EVENTS,
    USAGE,
    FakeFront,
    chunk,
    client_at,
    client_of,
    error_of,
    event,
    options,
    served,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2 as httpx

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
RELAYED = Served(frozenset({"openai", "test_model"}), (UpstreamModels("up", ("m", "a/b")),), "m")


pytestmark = pytest.mark.usefixtures("front")  # as it was before each test


@pytest.fixture
def client(server: tuple[FakeFront, str]) -> Iterator[httpx.Client]:
    with client_at(server[1]) as found:
        yield found


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_collector_waits_while_a_body_is_looked_at(
    client: httpx.Client, front: FakeFront, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    seen: list[bool] = []
    admit = front.admit

    def admitting(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        seen.append(gc.isenabled())
        if is_refused:
            raise ApiError(503, "queue_full", "full")
        return admit(*arguments, **options)

    monkeypatch.setattr(front, "admit", admitting)
    assert client.post(CHAT, json=HELLO).status_code == (503 if is_refused else 200)
    assert seen == [False]
    assert gc.isenabled()


# ---- streams


@pytest.mark.parametrize(
    ("path", "body", "events"), [(CHAT, HELLO, CHAT_EVENTS), (TEXT, {"prompt": "Hello"}, TEXT_EVENTS)]
)
def test_a_stream(
    client: httpx.Client, front: FakeFront, path: str, body: dict[str, Any], events: tuple[bytes, ...]
) -> None:
    response = client.post(path, json={**body, "stream": True}, headers={"X-Request-Id": "mine"})
    assert response.status_code == 200
    assert response.content == b"".join(events)
    assert response.headers["content-type"].startswith("text/event-stream")
    for name, value in (
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
        ("x-request-id", "mine"),
    ):
        assert response.headers.get_list(name) == [value]
    assert [ticket.use_count for ticket in front.tickets] == [1]


def test_what_a_backend_is_given(client: httpx.Client, front: FakeFront) -> None:
    body = {**HELLO, "model": "test", "stream": True, "max_tokens": 9, "max_completion_tokens": 5, "temperature": 0.5}
    raw = json.dumps({**body, "unknown": {"a": 1}}).encode()
    client.post(CHAT, content=raw, headers={"Content-Type": "application/json", "X-Request-Id": "mine"})
    ticket = front.tickets[0]
    request, fields = ticket.request, ticket.request.fields
    assert (ticket.backend, ticket.user) == ("test_model", "127.0.0.1")
    assert request.raw == raw  # a stream's body goes on as it came
    assert front.decoded == [json.loads(raw)]
    assert request.decoded is None
    assert (request.endpoint, request.headers["x-request-id"], fields.request_id) == ("chat", "mine", "mine")
    assert (fields.model, fields.max_tokens, fields.temperature) == ("test-model", 5, 0.5)
    assert (request.prompt, fields.user_id) == ("Hello", None)


@pytest.mark.parametrize(
    ("prompt", "text"), [("Say", "Say"), (["one", "two"], "one"), ([1, 2], ""), ([[1]], ""), (None, "")]
)
def test_the_prompt_of_a_completion(client: httpx.Client, front: FakeFront, prompt: object, text: str) -> None:
    assert client.post(TEXT, json={"prompt": prompt, "stream": True}).status_code == 200
    request = front.tickets[0].request
    assert (request.endpoint, request.prompt, request.fields.messages) == ("completions", text, None)


# ---- whole answers


def test_a_whole_conversation(client: httpx.Client, front: FakeFront) -> None:
    response = client.post(CHAT, json=HELLO)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "test-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    assert front.closed_count == 1


def test_a_whole_completion(client: httpx.Client) -> None:
    found = client.post(TEXT, json={"prompt": "p", "stream": False}).json()
    choice = {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}
    assert (found["object"], found["choices"], found["usage"]) == ("text_completion", [choice], USAGE)


def test_a_whole_answer_is_a_stream_to_the_backend(client: httpx.Client, front: FakeFront) -> None:
    client.post(CHAT, json={**HELLO, "stream": False, "stream_options": {"continuous_usage_stats": True}, "x": [1]})
    request = front.tickets[0].request
    said = request.options
    assert front.decoded == [said], "what is known of it is what its bytes say"
    assert request.decoded is None, "a stream does not keep it"
    assert said == {
        **HELLO,
        "stream": True,
        "stream_options": {"continuous_usage_stats": True, "include_usage": True},
        "x": [1],
    }


def test_an_answer_of_no_tokens(client: httpx.Client, front: FakeFront) -> None:
    front.text = (b"data: [DONE]\n\n",)
    found = client.post(TEXT, json={"max_tokens": 0, "n": 2, "model": "default"}).json()
    assert [choice["text"] for choice in found["choices"]] == ["", ""]
    assert (found["model"], found["usage"]) == ("test-model", None)
    assert found["id"].startswith("cmpl-")


def test_an_answer_that_is_cut(client: httpx.Client, front: FakeFront) -> None:
    front.failure = CUT
    front.chat = CHAT_EVENTS[:2]
    response = client.post(CHAT, json=HELLO)
    assert response.status_code == 502
    assert error_of(response)["code"] == "stream_cut"
    assert front.closed_count == 1


def test_an_error_before_the_first_byte(client: httpx.Client, front: FakeFront) -> None:
    front.chat, front.failure = (), ApiError(504, "upstream_timeout", "the upstream fell silent")
    response = client.post(CHAT, json=HELLO)
    assert response.status_code == 504
    assert error_of(response) == {
        "message": "the upstream fell silent",
        "type": "timeout",
        "param": None,
        "code": "upstream_timeout",
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ({"message": "m", "type": "backend_error", "param": None, "code": "upstream_error"}, 502, "upstream_error"),
        ({"message": "m", "type": "timeout", "code": "silence_timeout"}, 504, "silence_timeout"),
        ({"message": "m", "type": "service_unavailable", "code": "shutdown"}, 503, "shutdown"),
        ({"message": "m", "code": 429}, 429, "429"),
        ({"message": "m", "code": "413"}, 413, "413"),
        ({"message": "m", "code": 401}, 502, "401"),  # of the daemon's key, not of the client's
        ({"message": "m", "type": "authentication_error"}, 502, "upstream_error"),
        ({"message": "m", "code": 200}, 502, "200"),
        ({}, 502, "upstream_error"),
        ("text", 502, "upstream_error"),
    ],
)
def test_an_error_in_the_stream(client: httpx.Client, front: FakeFront, error: object, status: int, code: str) -> None:
    front.chat = (*CHAT_EVENTS[:2], event({"error": error}))
    response = client.post(CHAT, json=HELLO)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert ("retry-after" in response.headers) == (status in {429, 503})


def test_an_answer_that_is_too_large() -> None:
    front = FakeFront()
    front.chat = (event(chunk({"content": "x" * 500})),) * 5
    with client_of(front, options(answer_bytes_max=2000)) as client:
        response = client.post(CHAT, json=HELLO)
        assert response.status_code == 502
        assert error_of(response)["code"] == "answer_too_large"
        assert front.closed_count == 1


def test_an_answer_that_takes_too_long() -> None:
    front = FakeFront()
    front.pause_s = 30
    with client_of(front, options(answer_timeout_s=0.2)) as client:
        response = client.post(CHAT, json=HELLO)
        assert response.status_code == 504
        assert error_of(response)["type"] == "timeout"
        assert front.closed_count == 1


def test_a_client_that_leaves_ends_the_stream() -> None:
    front = FakeFront()
    front.pause_s = 30
    with served(front) as base:
        port = int(base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            body = json.dumps(HELLO).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            _wait(lambda: bool(front.tickets))
            assert front.closed_count == 0
        _wait(lambda: front.closed_count == 1)


def _wait(is_so: Any) -> None:  # noqa: ANN401
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# ---- bodies


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": 'Application/JSON; charset="UTF-8"'}, 200),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Origin": "https://elsewhere.example"}, 415),
        ({"Origin": "https://elsewhere.example", "Content-Type": "application/json"}, 200),
    ],
)
def test_types_of_bodies(client: httpx.Client, path: str, headers: dict[str, str], status: int) -> None:
    response = client.post(path, content=json.dumps(HELLO).encode(), headers=headers)
    assert response.status_code == status
    if status == 415:
        assert error_of(response)["code"] == "unsupported_media_type"


def test_a_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    with served(FakeFront(), options(body_bytes_max=1000)) as base:
        port = int(base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_in_chunks_is_bounded_too() -> None:
    with client_of(FakeFront(), options(body_bytes_max=1000)) as client:
        response = client.post(CHAT, content=iter([b"x" * 600, b"x" * 600]))
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"
        assert "1000 bytes" in str(error_of(response)["message"])
        assert client.post(CHAT, content=iter([b" " * 600, json.dumps(HELLO).encode()])).status_code == 200


def test_a_body_that_does_not_come() -> None:
    with served(FakeFront(), options(body_timeout_s=0.2)) as base:
        port = int(base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_wrong_fields(client: httpx.Client, front: FakeFront) -> None:
    response = client.post(CHAT, json={"messages": [{"role": "robot"}], "stream": True})
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages[0].role"
    response = client.post(CHAT, json={"messages": []})
    assert error_of(response)["message"] == "messages is required and must be a non-empty array"
    assert client.post(TEXT, content=b"{").status_code == 400
    assert not front.tickets


# ---- models


def test_an_unknown_model(client: httpx.Client, front: FakeFront) -> None:
    response = client.post(CHAT, json={**HELLO, "model": "gpt-9"})
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'gpt-9'" in str(error["message"])
    assert not front.tickets


def test_models_of_upstreams() -> None:
    front = FakeFront()
    with client_of(front, options(router=Router(RELAYED, created_s=7))) as client:
        for model, backend in (("m", "openai"), (None, "openai"), ("test-model", "test_model")):
            assert client.post(CHAT, json={**HELLO, "model": model}).status_code == 200
            assert front.tickets[-1].backend == backend
        assert front.tickets[1].request.fields.model is None
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        assert [(one["id"], one["owned_by"], one["created"]) for one in listed["data"]] == [
            ("a/b", "up", 7),
            ("m", "up", 7),
            ("test-model", "streaming-daemon", 7),
        ]
        assert client.get("/v1/models/a/b").json() == listed["data"][0]
        response = client.get("/v1/models/nothing")
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"


# ---- refusals


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal(client: httpx.Client, front: FakeFront, stream: bool) -> None:
    front.refusal = ApiError(503, "connection_limit", "as many streams as are allowed are open")
    response = client.post(CHAT, json={**HELLO, "stream": stream})
    assert response.status_code == 503
    assert (error_of(response)["code"], response.headers["retry-after"]) == ("connection_limit", "1")


def test_an_upstreams_own_body_goes_on_as_it_came(client: httpx.Client, front: FakeFront) -> None:
    front.refusal = ApiError(422, "upstream_error", "m", body=b"<p>no</p>", content_type="text/html")
    response = client.post(CHAT, json=HELLO)
    assert (response.status_code, response.content) == (422, b"<p>no</p>")
    assert response.headers["content-type"].startswith("text/html")
