"""The two ways of a completion, before ASGI and through the application, say the same, byte for byte.

The shortcut is asked about paths as they are; a question mark behind one sends the same request through everything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.http_helpers import CHAT, COMPLETIONS, Front, asking, http_config, post, relayed, serving
from tests.upstream import Plan, Upstream, openai_stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

KEY, ORIGIN = "sk-alice-0123456789abcdef", "https://example.com"
RELAYED = "some-model"
BODY_BYTES_MAX = 2000
HELLO = {"model": "test-model", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 3}
AUTHORISED = {"Authorization": f"Bearer {KEY}"}
FILLING = "x" * BODY_BYTES_MAX

CASES: dict[str, tuple[str, bytes | Mapping[str, object], Mapping[str, str]]] = {
    "a stream": (COMPLETIONS, asking(max_tokens=3), {}),
    "a conversation": (CHAT, HELLO, {}),
    "with usage": (CHAT, {**HELLO, "stream_options": {"include_usage": True}}, {}),
    "an id": (COMPLETIONS, asking(max_tokens=3), {"X-Request-Id": "mine"}),
    "an id that is none": (COMPLETIONS, asking(max_tokens=3), {"X-Request-Id": "not\tmine"}),
    "on a worker": (COMPLETIONS, asking(max_tokens=3, n=2), {}),
    "relayed": (CHAT, {**HELLO, "model": RELAYED}, {}),
    "no upstream": (CHAT, {**HELLO, "model": "gone-model"}, {}),
    "in one piece": (CHAT, {**HELLO, "stream": False}, {}),
    "a page that may ask": (COMPLETIONS, asking(max_tokens=3), {"Origin": ORIGIN}),
    "a page that may not": (COMPLETIONS, asking(max_tokens=3), {"Origin": "https://other.example"}),
    "no type": (COMPLETIONS, asking(max_tokens=3), {"Content-Type": ""}),
    "a type with its charset": (COMPLETIONS, asking(max_tokens=3), {"Content-Type": "application/json; charset=utf-8"}),
    "another charset": (COMPLETIONS, asking(max_tokens=3), {"Content-Type": "application/json; charset=latin-1"}),
    "another type": (COMPLETIONS, asking(max_tokens=3), {"Content-Type": "text/plain"}),
    "compressed": (COMPLETIONS, asking(max_tokens=3), {"Content-Encoding": "gzip"}),
    "no key": (COMPLETIONS, asking(max_tokens=3), {"Authorization": ""}),
    "another key": (COMPLETIONS, asking(max_tokens=3), {"Authorization": "Bearer sk-nobody-0123456789"}),
    "no JSON": (COMPLETIONS, b'{"stream": true', {}),
    "no object": (COMPLETIONS, b"[1]", {}),
    "a field that is wrong": (CHAT, {**HELLO, "temperature": 3}, {}),
    "a field that is missing": (CHAT, {"model": "test-model", "stream": True}, {}),
    "what the backend refuses": (COMPLETIONS, asking(stop=[""]), {}),
    "no such model": (CHAT, {**HELLO, "model": "no-model"}, {}),
    "too large": (COMPLETIONS, asking(user=FILLING), {}),
}


@pytest.fixture(name="front", scope="module")
def _front(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    keys = directory / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"alice: {KEY}\n")
    http = {"api_keys_file": str(keys), "cors_origins": [ORIGIN], "body_bytes_max": BODY_BYTES_MAX}
    with Upstream() as upstream:
        upstream.answer(RELAYED, Plan(openai_stream(["Hello", " there"])))
        configuration = http_config(http, relayed(upstream, {RELAYED: "upstream"}), backend="openai")
        with serving(kernel, directory, configuration) as front:
            yield front


def answer(front: Front, path: str, body: bytes | Mapping[str, object], headers: Mapping[str, str]) -> bytes:
    """All that is said, without what differs from one request to the next."""
    given = {name: value for name, value in {**AUTHORISED, "Connection": "close", **headers}.items() if value}
    request = post(path, body, given)
    if headers.get("Content-Type") == "":
        request = request.replace(b"Content-Type: application/json\r\n", b"")
    with front.connect() as wire:
        wire.send(request)
        said = _unchunked(wire.rest())
    said = re.sub(rb"(?<=x-request-id: )[0-9a-f]{32}(?=\r)", b"made", said, flags=re.IGNORECASE)
    said = re.sub(rb"(?<=date: )[^\r]+", b"then", said, flags=re.IGNORECASE)
    said = re.sub(rb"cmpl-[0-9a-f]{24}", b"cmpl-1", said)
    return re.sub(rb'"created":\d+', b'"created":1', said)


def _unchunked(said: bytes) -> bytes:
    """A stream comes in whatever pieces it comes in."""
    head, _, rest = said.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return said
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
        if length == 0:
            assert not rest
            return head + b"\r\n\r\n" + body + b"(whole)"
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize("case", CASES)
def test_both_ways_say_the_same(front: Front, case: str) -> None:
    path, body, headers = CASES[case]
    directly = answer(front, path, body, headers)
    with front.leaves_nothing(kept=3):  # a request may come before the connection to its upstream is free
        assert answer(front, path, body, headers) == directly
        assert directly == answer(front, path + "?", body, headers)
    assert directly.startswith(b"HTTP/1.1 ")
    assert b"x-request-id: " in directly.lower()


def test_what_is_refused_keeps_its_connection(front: Front) -> None:
    with front.connect() as wire:
        for path in (COMPLETIONS, COMPLETIONS + "?", COMPLETIONS):
            wire.send(post(path, {"model": "no-model", "stream": True}, AUTHORISED))
            assert wire.reply().error["code"] == "model_not_found"
        wire.send(post(COMPLETIONS, asking(max_tokens=3), AUTHORISED))
        assert wire.reply().is_whole


def test_requests_are_counted_alike(front: Front) -> None:
    def counted() -> float:
        text = front.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").body.decode()
        wanted = f'streaming_daemon_http_requests_total{{method="POST",route="{COMPLETIONS}",status="200"}}'
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(wanted))

    before = counted()
    assert front.post(COMPLETIONS, asking(max_tokens=1), AUTHORISED).is_whole
    assert front.post(COMPLETIONS + "?", asking(max_tokens=1), AUTHORISED).is_whole
    assert counted() == before + 2


def test_a_start_is_counted_once_against_a_users_limit(kernel: str, tmp_path: Path) -> None:
    """Whoever is refused has not been asked twice."""
    limits = "[limits]\nrequests_per_minute_per_user = 4\n"
    with serving(kernel, tmp_path, http_config({}, limits)) as front:
        statuses = [front.post(COMPLETIONS, asking(stop=[""])).status for _ in range(3)]
        assert statuses == [400, 400, 400]
        assert front.post(COMPLETIONS, asking(max_tokens=1)).status == 200
        refused = front.post(COMPLETIONS, asking(max_tokens=1))
        assert (refused.status, refused.error["code"]) == (429, "requests_per_minute_per_user")
        assert refused.headers["ratelimit"].startswith('"requests";r=0')
