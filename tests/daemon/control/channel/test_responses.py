"""Answers: heads byte for byte, problems that parse, endings that fit."""

from __future__ import annotations

import http.client
import io
import json
from typing import Any

import pytest

from daemon.control.channel import responses
from daemon.control.channel.responses import STANDARD_HEAD, either, error_event, problem, streaming_head
from daemon.plane.messages import PAYLOAD_BYTES_MAX
from daemon.plane.paced import RESERVE_BYTES

STATUSES = sorted(responses.PHRASES)


class _Stream(io.BytesIO):
    def makefile(self, _mode: str) -> _Stream:
        return self


def parsed(response: bytes) -> tuple[http.client.HTTPResponse, Any]:
    """A response read by the standard library's client."""
    made = http.client.HTTPResponse(_Stream(response))  # type: ignore[arg-type]
    made.begin()
    return made, json.loads(made.read())


def test_the_standard_head_is_that_of_the_older_daemons() -> None:
    assert STANDARD_HEAD == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
        b"Connection: close\r\nX-Accel-Buffering: no\r\n\r\n"
    )


def test_more_headers_come_after_the_standard_ones() -> None:
    assert streaming_head(b"X-A: 1\r\n") == STANDARD_HEAD[:-2] + b"X-A: 1\r\n\r\n"


@pytest.mark.parametrize("status", STATUSES)
def test_a_problem_is_a_whole_response(status: int) -> None:
    raw = problem(status, "some_code", 'what "happened"', retry_after_s=7 if status == 503 else 0)
    response, body = parsed(raw)
    assert response.status == status
    assert response.reason == responses.phrase(status)
    assert response.getheader("Content-Type") == "application/problem+json"
    assert response.getheader("Cache-Control") == "no-store"
    assert response.getheader("Connection") == "close"
    assert response.getheader("Retry-After") == ("7" if status == 503 else None)
    assert body["status"] == status
    assert body["title"] == responses.phrase(status)
    assert body["detail"] == 'what "happened"'
    assert body["code"] == "some_code"


@pytest.mark.parametrize("status", STATUSES)
def test_the_envelope_is_openais(status: int) -> None:
    response, body = parsed(problem(status, "some_code", "what happened", "openai"))
    assert response.getheader("Content-Type") == "application/json"
    assert set(body) == {"error"}
    assert body["error"]["message"] == "what happened"
    assert body["error"]["code"] == "some_code"
    assert body["error"]["param"] is None
    assert body["error"]["type"] == responses.error_type(status)


def test_classes_of_errors() -> None:
    assert responses.error_type(400) == responses.error_type(413) == "invalid_request_error"
    assert responses.error_type(429) == "rate_limit_exceeded"
    assert responses.error_type(504) == "timeout"
    assert responses.error_type(507) == "internal_error"
    assert responses.phrase(418) == "Error"


def test_an_error_event_is_one_event() -> None:
    event = error_event(504, "silence_timeout", "one\ntwo")
    lines = event.decode().split("\n")
    assert lines[0] == "event: error"
    assert lines[2:] == ["", ""]
    assert json.loads(lines[1].removeprefix("data: ")) == {
        "error": {"message": "one\ntwo", "type": "timeout", "param": None, "code": "silence_timeout"}
    }


def test_an_ending_holds_both() -> None:
    ending = either(503, "shutdown", "bye", retry_after_s=1)
    assert ending.payload[: ending.head_bytes] == problem(503, "shutdown", "bye", retry_after_s=1)
    assert ending.payload[ending.head_bytes :] == error_event(503, "shutdown", "bye")


def test_a_raw_stream_has_no_events() -> None:
    ending = either(503, "shutdown", "bye", "raw")
    assert ending.head_bytes == len(ending.payload)


@pytest.mark.parametrize("character", ["x", "\U0001f600", "\x01", '"', "\ud800"])
def test_however_long_the_detail_everything_fits(character: str) -> None:
    detail = character * 100_000
    assert len(problem(400, "unknown_backend", detail)) <= PAYLOAD_BYTES_MAX
    ending = either(500, "backend_error", detail, lines=b"X-Request-Id: 1\r\n", param=detail)
    assert len(ending.payload) <= PAYLOAD_BYTES_MAX
    assert len(ending.payload[ending.head_bytes :]) <= RESERVE_BYTES


def test_a_head_for_another_type_of_content() -> None:
    assert responses.typed_head(None, "a/b") == STANDARD_HEAD.replace(b"text/event-stream", b"a/b")
    own = streaming_head(b"X-A: text/event-stream\r\n")
    assert responses.typed_head(own, "a/b") == STANDARD_HEAD[:-2].replace(b"text/event-stream", b"a/b") + (
        b"X-A: text/event-stream\r\n\r\n"
    )
