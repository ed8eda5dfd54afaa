"""Short ways to make what these tests are about: a backend with a clock that stands still, requests, failures, ends."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import msgspec

from backends.interface import Fields, Request
from backends.openai import OpenAI
from backends.relay import Failure, FailureKind, Outcome

if TYPE_CHECKING:
    from backends.openai.relay import OpenAIRelay

PLAIN = "http://127.0.0.1:8000/v1"
EPOCH_S = 1_790_000_000.0  # 2026-09-21T14:13:20Z
_decode = msgspec.json.Decoder(Fields).decode


class Clock:
    """Seconds that pass when a test says so; the wall clock goes along."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return EPOCH_S + self.now_s - 1000

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def upstream(name: str, **keys: object) -> dict[str, object]:
    return {"name": name, "api_base": f"http://{name}.test:8000", **keys}


def backend(clock: Clock | None = None, seed: int = 1, **options: object) -> OpenAI:
    clock = clock or Clock()
    if "upstreams" not in options:
        options.setdefault("api_base", PLAIN)
    return OpenAI(options, randomness=random.Random(seed), clock=clock, wall_clock=clock.wall)


def several(clock: Clock, *upstreams: dict[str, object], seed: int = 1, **options: object) -> OpenAI:
    return backend(clock, seed, upstreams=list(upstreams), **options)


def request(fields: dict[str, Any] | None = None, headers: dict[str, str] | None = None, **more: object) -> Request:
    """A request as admission makes it of a handoff, or with headers, as the HTTP front does."""
    raw = json.dumps({**(fields or {}), **more}).encode()
    return Request(_decode(raw), raw, headers)


def opened(one: OpenAI, **fields: object) -> OpenAIRelay:
    return one.open(request({"prompt": "p", **fields}))


def answer(status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> Failure:
    """An answer that is no 2xx; `retry_after="5"` is a header."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Failure(FailureKind.STATUS, status, {name.replace("_", "-"): value for name, value in headers.items()}, data)


def failure(kind: FailureKind, *, is_streaming: bool = False, body: bytes = b"", detail: str = "") -> Failure:
    return Failure(kind, is_streaming=is_streaming, body=body, detail=detail)


def outcome(reason: str = "complete", **changes: object) -> Outcome:
    is_complete = reason == "complete"
    values: dict[str, Any] = {
        "reason": reason,
        "is_complete": is_complete,
        "bytes_sent": 500 if is_complete else 0,
        "duration_s": 2.5,
        "first_token_s": 0.25 if is_complete else None,
        "last_token_s": 2.25 if is_complete else None,
        "token_count": 40 if is_complete else 0,
        "prompt_tokens": None,
        "completion_tokens": None,
        "malformed_events": 0,
    }
    values.update(changes)
    return Outcome(**values)
