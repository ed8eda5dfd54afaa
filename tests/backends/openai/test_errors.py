"""What clients are told: statuses, codes, an upstream's own words, and no secret in any of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.openai.errors import MESSAGE_CHARACTERS_MAX, Said, UpstreamError, masked, of_failure, said
from backends.openai.options import UpstreamOptions
from backends.relay import FailureKind, RelayError
from tests.backends.openai.making import answer, backend, failure

KEY = "my-own-key-1"
EXPECTED = {
    FailureKind.CONNECT: (502, "upstream_unreachable", "reached"),
    FailureKind.CONNECT_TIMEOUT: (504, "upstream_timeout", "connection in time"),
    FailureKind.CERTIFICATE: (502, "upstream_certificate", "set ca_file"),
    FailureKind.RESET: (502, "upstream_disconnected", "before it answered"),
    FailureKind.HEAD_TIMEOUT: (504, "upstream_timeout", "head_timeout_ms"),
    FailureKind.HEAD_MALFORMED: (502, "upstream_malformed", "HTTP/1.1"),
    FailureKind.HEAD_TOO_LARGE: (502, "upstream_malformed", "head that is too large"),
    FailureKind.HTTP_VERSION: (502, "upstream_http_version", "HTTP/2: set http2_enabled = true"),
    FailureKind.STATUS: (502, "upstream_error", "answered with 0"),
    FailureKind.REDIRECT: (502, "upstream_redirect", "set api_base"),
    FailureKind.NOT_A_STREAM: (502, "upstream_not_a_stream", "OpenAI-compatible"),
    FailureKind.COMPRESSED: (502, "upstream_compressed", "compressed"),
    FailureKind.FIRST_TOKEN_TIMEOUT: (504, "upstream_timeout", "first_token_timeout_ms"),
    FailureKind.SILENCE_TIMEOUT: (504, "upstream_timeout", "silence_timeout_ms"),
    FailureKind.CUT: (502, "upstream_disconnected", "before the stream's end"),
    FailureKind.ERROR_EVENT: (502, "upstream_error", "reported an error"),
    FailureKind.MALFORMED: (502, "upstream_malformed", "cannot be understood"),
    FailureKind.EVENT_TOO_LARGE: (502, "upstream_malformed", "event that is too large"),
    FailureKind.NO_RESOURCES: (503, "no_resources", "no connections left"),
}


def options(*, http2_enabled: bool = False) -> UpstreamOptions:
    return backend(api_key=KEY, http2_enabled=http2_enabled).upstreams()[0].options


def told(status: int, body: bytes | dict[str, Any] = b"", retry_after_s: int = 0) -> RelayError:
    return of_failure(answer(status, body), options(), retry_after_s)


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_has_a_status_a_code_and_a_sentence(kind: FailureKind) -> None:
    status, code, word = EXPECTED[kind]
    error = of_failure(failure(kind), options())
    assert (error.status, error.code) == (status, code)
    assert word in error.message
    detailed = of_failure(failure(kind, detail=f"refused by {KEY}"), options())
    assert KEY not in detailed.message


def test_the_reverse_of_a_wrong_version() -> None:
    error = of_failure(failure(FailureKind.HTTP_VERSION), options(http2_enabled=True))
    assert error.message == "the upstream answered with HTTP/1.1: set http2_enabled = false"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (500, (502, "upstream_error")),
        (501, (502, "upstream_error")),
        (502, (502, "upstream_error")),
        (503, (503, "upstream_unavailable")),
        (504, (504, "upstream_error")),
        (529, (502, "upstream_error")),
        (304, (502, "upstream_error")),
        (999, (502, "upstream_error")),
        (429, (429, "upstream_rate_limited")),
        *((status, (status, "upstream_refused")) for status in (400, 401, 403, 404, 408, 409, 413, 422, 499)),
    ],
)
def test_statuses(status: int, expected: tuple[int, str]) -> None:
    error = told(status, {"error": {"message": "why"}})
    assert (error.status, error.code) == expected
    assert error.message == f"the upstream answered with {status}: why"
    assert bool(error.body) == (error.code == "upstream_refused")


def test_when_to_come_back_is_passed_on() -> None:
    assert told(429, retry_after_s=7).retry_after_s == 7
    assert told(503, retry_after_s=7).retry_after_s == 7
    assert told(500, retry_after_s=7).retry_after_s == 0


def test_a_refusal_is_passed_on_as_it_is_but_for_keys() -> None:
    body = b'{ "error" : {"message": "no: my-own-key-1, \\u00e4", "param": "model", "code": "c", "x": 1} }\n'
    error = told(404, body)
    assert error.body == body.replace(KEY.encode(), b"***")
    assert error.content_type == "application/json"
    assert error.param == "model"
    assert error.message == "the upstream answered with 404: no: ***, ä"


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"error": "cut', b"\xff", b'{"a":"\xff"}', b"[" * 5000])
def test_what_is_no_json_is_not_passed_on(body: bytes) -> None:
    error = told(404, body)
    assert error.body == b""
    assert error.message == "the upstream answered with 404"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}', Said("m", "t", "p", "c", 0)),
        (b'{"error":{"message":"m","code":404}}', Said("m", status=404)),
        (b'{"error":{"message":"m","code":7}}', Said("m")),
        (b'{"error":"m"}', Said("m")),
        (
            b'{"object":"error","message":"m","type":"BadRequestError","code":400}',
            Said("m", "BadRequestError", status=400),
        ),
        (b'{"detail":"m"}', Said("m")),
        (b'{"detail":[{"loc":["body"]}]}', Said()),
        (b'{"error":{"message":"a\\n  b","type":"not a word","param":[1],"code":null}}', Said("a b")),
        (b'{"error":[]}', Said()),
        (b"[]", Said()),
        (b'"text"', Said()),
        (b"", Said()),
    ],
)
def test_what_errors_look_like(body: bytes, expected: Said) -> None:
    assert said(body, ()) == expected


def test_a_long_message_is_shortened() -> None:
    found = said(json.dumps({"error": {"message": "x" * 5000}}).encode(), ()).message
    assert len(found) == MESSAGE_CHARACTERS_MAX
    assert found.endswith("...")


def test_an_error_event_keeps_what_the_upstream_called_it() -> None:
    data = (
        b'{"error":{"message":"too long my-own-key-1","type":"invalid_request_error","param":"messages","code":"ctx"}}'
    )
    error = of_failure(failure(FailureKind.ERROR_EVENT, body=data, is_streaming=True), options())
    assert isinstance(error, UpstreamError)
    assert (error.status, error.code, error.param, error.type) == (400, "ctx", "messages", "invalid_request_error")
    assert json.loads(error.body) == {
        "error": {"message": "too long ***", "type": "invalid_request_error", "param": "messages", "code": "ctx"}
    }
    numbered = of_failure(failure(FailureKind.ERROR_EVENT, body=b'{"error":{"message":"m","code":422}}'), options())
    assert (numbered.status, numbered.code) == (422, "upstream_error")
    broken = of_failure(failure(FailureKind.ERROR_EVENT, body=b'{"error":{"message":"m","code":500}}'), options())
    assert (broken.status, broken.code) == (502, "upstream_error")
    assert json.loads(broken.body)["error"]["type"] == "backend_error"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"the key {KEY} is wrong", "the key *** is wrong"),
        ("Incorrect API key: sk-proj-abcdefghijklmnop1234", "Incorrect API key: ***"),
        ("gsk_abcdefghijklmnopqrst and hf_abcdefghijklmnopqrst", "*** and ***"),
        ("Authorization: Bearer abc123def456==", "Authorization: ***"),
        ("Bearer authentication is required", "Bearer authentication is required"),
        ("sk-learn and key_not_found", "sk-learn and key_not_found"),
        ("", ""),
    ],
)
def test_masking(text: str, expected: str) -> None:
    assert masked(text, [KEY]) == expected


@given(some.text(), some.text())
def test_a_key_is_never_left(before: str, after: str) -> None:
    assert KEY not in masked(f"{before}{KEY}{after}", [KEY])


SECRET_HEADERS = {
    "api-key": "SECRET1234",
    "X-Api-Key": "SECRET/5+6==",
    "Authorization": "Token SECRET-789",
    "Cookie": "session=SECRETcookie; theme=dark",
    "CF-Access-Client-Secret": 'SECRET"quoted\\',
    "X-Region": "europe",
}
SECRETS = ["SECRET1234", "SECRET/5+6==", "Token SECRET-789", "SECRET-789", "SECRETcookie", 'SECRET"quoted\\']


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["{}", "a {} b", "x={}"])
def test_a_secret_in_a_header_is_never_told(secret: str, form: str) -> None:
    (state,) = backend(headers=SECRET_HEADERS, needs_key=False).upstreams()
    assert "SECRET" not in repr(state.options)
    echoed = form.format(secret)
    plain = json.dumps({"error": {"message": echoed, "param": secret, "code": secret, "europe": [echoed]}})
    escaped = plain.replace("/", "\\/").replace("=", "\\u003d")
    spelled = plain.replace("SECRET", "".join(f"\\u{ord(letter):04x}" for letter in "SECRET"))
    for body in (plain, escaped, spelled):
        for status in (400, 401, 429, 500):
            error = of_failure(answer(status, body.encode()), state.options)
            assert "SECRET" not in error.message
            assert "SECRET" not in (error.param or "")
            assert b"SECRET" not in error.body
            if error.body:
                assert "SECRET" not in repr(json.loads(error.body))
                assert "europe" in json.loads(error.body)["error"]
        event = of_failure(failure(FailureKind.ERROR_EVENT, body=body.encode()), state.options)
        assert "SECRET" not in event.message + event.code + repr(json.loads(event.body))


def test_short_words_of_headers_are_no_secrets() -> None:
    (state,) = backend(headers={"Cookie": "a=1; b=on", "X-Api-Key": "x"}, needs_key=False).upstreams()
    assert masked("a box is on 1", state.options.secrets) == "a box is on 1"
