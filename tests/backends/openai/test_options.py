"""What settings become: addresses, keys, what is inherited, and every error that an operator can make."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.interface import OptionError
from backends.openai.options import UpstreamOptions, parse_base, upstream_options, warnings
from config import VERSION
from config.openai import OpenAIBackend, Upstream

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-abcdefghijklmnop"


def made(**options: object) -> tuple[UpstreamOptions, ...]:
    return upstream_options(msgspec.convert(options, OpenAIBackend))


def one(**options: object) -> UpstreamOptions:
    (found,) = made(**options)
    return found


def refusal(**options: object) -> str:
    with pytest.raises(OptionError) as raised:
        made(**options)
    return str(raised.value)


# ---- addresses


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://api.openai.com/v1", ("https", "api.openai.com", 443, "/v1")),
        ("https://api.openai.com", ("https", "api.openai.com", 443, "/v1")),
        ("https://api.openai.com/", ("https", "api.openai.com", 443, "/v1")),
        ("https://api.openai.com/v1/", ("https", "api.openai.com", 443, "/v1")),
        ("HTTP://Host:8000", ("http", "host", 8000, "/v1")),
        ("http://[::1]:8080/v1//", ("http", "::1", 8080, "/v1")),
        ("https://api.groq.com/openai/v1", ("https", "api.groq.com", 443, "/openai/v1")),
        ("https://host/openai", ("https", "host", 443, "/openai/v1")),
        ("https://host/v1beta/openai/", ("https", "host", 443, "/v1beta/openai")),
        ("http://host:80/version", ("http", "host", 80, "/version/v1")),
    ],
)
def test_base_urls(base: str, expected: tuple[str, str, int, str]) -> None:
    assert parse_base(base, "here") == expected
    assert one(api_base=base, needs_key=False).base_path == expected[3]


@pytest.mark.parametrize(
    ("base", "fault"),
    [
        ("api.openai.com/v1", "neither https:// nor http://"),
        ("ftp://host", "neither"),
        ("http://", "no host"),
        ("http:///v1", "no host"),
        ("http://user:secret@host/v1", "user name or a password"),
        ("http://host:0", "0 is no port"),
        ("http://host:99999", "Port out of range"),
        ("http://host:port", "Port"),
        ("http://[::1", "IPv6"),
        ("http://host/v1?key=secret", "query or a fragment"),
        ("http://host/v1#x", "query or a fragment"),
        ("http://host/v1?", "query or a fragment"),
        ("http://host/v1/chat/completions", "added by itself"),
        ("http://ho st/v1", "a character that a URL does not have"),
        ("http://host/v1\nX: y", "a character that a URL does not have"),
        ("http://hôst", "a character that a URL does not have"),
        ("http://ho!st", "no host"),
    ],
)
def test_base_urls_that_are_refused(base: str, fault: str) -> None:
    message = refusal(api_base=base)
    assert message.startswith("backend.openai.api_base is refused: ")
    assert fault in message
    assert message.endswith("write it as https://HOST[:PORT]/v1")
    assert "secret" not in message


@given(some.text(max_size=60) | some.text(max_size=30).map(lambda end: f"http://host{end}"))
def test_any_text_is_a_base_or_refused_in_words(base: str) -> None:
    try:
        scheme, host, port, path = parse_base(base, "here")
    except OptionError:
        return
    assert scheme in {"http", "https"}
    assert host.isascii()
    assert 0 < port < 65_536
    assert path.startswith("/")
    assert all("!" <= character <= "~" for character in host + path)


def test_an_origin_has_the_sections_numbers() -> None:
    origin = one(
        api_base="http://host", connect_timeout_ms=1, head_timeout_ms=2, first_token_timeout_ms=3, silence_timeout_ms=4,
        on_disconnect="drain", drain_timeout_s=5, idle_connections_max=6, idle_timeout_s=7, http2_enabled=True,
    ).origin  # fmt: skip
    assert (origin.connect_timeout_ms, origin.head_timeout_ms, origin.first_token_timeout_ms) == (1, 2, 3)
    assert (origin.silence_timeout_ms, origin.drain_timeout_ms, origin.idle_connections_max) == (4, 5000, 6)
    assert (origin.idle_timeout_ms, origin.http2, origin.name, origin.is_plain) == (7000, True, "default", False)
    assert one(api_base="http://host", drain_timeout_s=5).origin.drain_timeout_ms == 0


def test_a_unix_socket() -> None:
    origin = one(api_socket="/run/llm.sock").origin
    assert (origin.scheme, origin.host, origin.socket_path, origin.is_plain) == (
        *("http", "localhost", "/run/llm.sock"),
        True,
    )
    named = one(api_socket="/run/llm.sock", api_base="http://llm.internal/openai/v1")
    assert (named.origin.authority, named.base_path) == ("llm.internal", "/openai/v1")
    for path in ("/\0", "/" + "ä" * 60):
        assert "api_socket is refused" in refusal(api_socket=path)


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    assert "ca_file" in refusal(api_base="http://h", ca_file=str(tmp_path / "none"))
    assert "is no file" in refusal(api_base="http://h", ca_file=str(tmp_path))


# ---- keys


def test_the_key_is_a_header() -> None:
    found = one(api_key=KEY)
    assert dict(found.headers) == {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "User-Agent": f"streaming-daemon/{VERSION}",
        "Authorization": f"Bearer {KEY}",
    }
    assert KEY not in repr(found)


def test_no_key_no_header() -> None:
    assert "Authorization" not in dict(one(api_base="http://h").headers)


@pytest.mark.parametrize("base", ["https://api.openai.com/v1", "https://10.0.0.1", "https://localhost.evil.test"])
def test_https_needs_a_key(base: str) -> None:
    message = refusal(api_base=base)
    assert message.startswith("backend.openai has no key, and ")
    assert "api_key, api_key_file or OPENAI_API_KEY" in message
    assert one(api_base=base, needs_key=False).key == ""
    assert one(api_base=base, headers={"API-Key": "x"}).key == ""


@pytest.mark.parametrize("base", ["http://10.0.0.1", "https://localhost:8443", "https://127.0.0.2", "https://[::1]"])
def test_who_needs_no_key(base: str) -> None:
    assert one(api_base=base).key == ""


def test_a_socket_needs_no_key() -> None:
    assert one(api_socket="/run/x", api_base="https://api.openai.com/v1/").key == ""


@pytest.mark.parametrize("key", ["a b", "ä", "a\n", "a\0"])
def test_a_key_is_printable_ascii(key: str) -> None:
    message = refusal(api_key=key)
    assert message == "backend.openai.api_key is refused: a key is printable ASCII without spaces"


def key_file(folder: Path, content: bytes = KEY.encode() + b"\n", mode: int = 0o600) -> str:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_key_from_a_file(mode: int, tmp_path: Path) -> None:
    assert one(api_key_file=key_file(tmp_path, mode=mode)).key == KEY


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o602, 0o601])
def test_a_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    message = refusal(api_key_file=key_file(tmp_path, mode=mode))
    assert f"has mode {mode:04o}" in message
    assert "chmod 600" in message


@pytest.mark.parametrize("content", [b"", b" \n", b"a b", b"\xff\xfe", b"k" * 4097, b"k" * 20_000])
def test_a_file_that_holds_no_key(content: bytes, tmp_path: Path) -> None:
    message = refusal(api_key_file=key_file(tmp_path, content))
    assert message.startswith("backend.openai.api_key_file = ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(api_key_file=str(tmp_path / "none"))
    assert "is no file" in refusal(api_key_file=str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    assert "is no file" in refusal(api_key_file=str(tmp_path / "fifo"))


def test_two_keys_are_one_too_many(tmp_path: Path) -> None:
    assert "both set: keep one" in refusal(api_key=KEY, api_key_file=key_file(tmp_path))


# ---- headers and models


def test_headers_are_added_and_may_replace_two_of_ours() -> None:
    headers = dict(one(api_key=KEY, headers={"user-agent": "mine", "authorization": "Basic eA==", "X-A": "b"}).headers)
    assert headers == {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "user-agent": "mine",
        "authorization": "Basic eA==",
        "X-A": "b",
    }


def test_models_may_have_another_name_there() -> None:
    assert one(api_base="http://h", models=["a", "b=c", "d=e=f"]).models == {"a": "a", "b": "c", "d": "e=f"}
    for entry in ("=a", "a=", "="):
        assert f'models[0] = "{entry}" is refused' in refusal(api_base="http://h", models=[entry])


# ---- several


def test_what_an_upstream_leaves_out_is_the_sections() -> None:
    own: dict[str, object] = {
        "name": "second", "api_base": "http://own.test:1", "api_key": "", "models": [], "streams_max": 0,
        "max_tokens": 0, "headers": {}, "weight": 3, "priority": 2, "breaker_failures": 0, "temperature": 0,
    }  # fmt: skip
    first, second = made(
        api_base="https://all.test", api_key=KEY, models=["m"], streams_max=5, max_tokens=7, headers={"X-A": "b"},
        breaker_failures=9,
        upstreams=[{"name": "first"}, own],
    )  # fmt: skip
    assert (first.name, first.origin.host, first.key, first.models) == ("first", "all.test", KEY, {"m": "m"})
    assert (first.streams_max, first.defaults.max_tokens, first.breaker.failures) == (5, 7, 9)
    assert (first.weight, first.priority, dict(first.headers)["X-A"]) == (1, 0, "b")
    assert (second.origin.authority, second.key, second.models) == ("own.test:1", "", {})
    assert (second.streams_max, second.defaults.max_tokens, second.breaker.failures) == (0, 0, 0)
    assert (second.weight, second.priority, second.defaults.temperature) == (3, 2, 0)
    assert "X-A" not in dict(second.headers)
    assert "Authorization" not in dict(second.headers)


def test_every_key_that_an_upstream_may_set_is_one_of_the_section() -> None:
    own = {"name", "weight", "priority"}
    names = {field.name for field in msgspec.structs.fields(Upstream)} - own
    assert names < {field.name for field in msgspec.structs.fields(OpenAIBackend)}


def test_a_key_of_its_own_takes_the_place_of_the_sections_in_any_form(tmp_path: Path) -> None:
    file = key_file(tmp_path)
    section = {"api_base": "https://h", "upstreams": [{"name": "a", "api_key": "own"}]}
    assert made(api_key_file=file, **section)[0].key == "own"
    section["upstreams"] = [{"name": "a", "api_key_file": file}]
    assert made(api_key="other", **section)[0].key == KEY
    section["upstreams"] = [{"name": "a", "api_key": "own", "api_key_file": file}]
    assert "backend.openai.upstreams[0].api_key" in refusal(**section)


def test_a_base_of_its_own_does_not_go_through_the_sections_socket() -> None:
    first, second = made(api_socket="/run/all", upstreams=[{"name": "a"}, {"name": "b", "api_base": "http://h"}])
    assert first.origin.socket_path == "/run/all"
    assert second.origin.socket_path == ""


def test_errors_of_an_upstream_name_its_table() -> None:
    good = {"name": "good", "api_base": "http://h"}
    for bad, word in (
        ({"name": "bad", "api_base": "h"}, "upstreams[1].api_base is refused"),
        ({"name": "bad", "api_base": "https://h"}, "upstreams[1] has no key"),
        ({"name": "bad", "api_base": "http://h", "api_key": "a b"}, "upstreams[1].api_key is refused"),
        ({"name": "bad", "api_base": "http://h", "models": ["="]}, "upstreams[1].models[0] = "),
        ({"name": "bad", "api_base": "http://h", "ca_file": "/none"}, "upstreams[1].ca_file = "),
        ({"name": "bad", "api_base": "http://h", "api_key_file": "/none"}, "upstreams[1].api_key_file = "),
        (good, "upstreams[1].name = 'good' is refused: another upstream has it"),
    ):
        assert refusal(upstreams=[good, bad]).startswith(f"backend.openai.{word}")


# ---- warnings


def test_what_is_dangerous_is_said() -> None:
    (said,) = warnings(made(api_base="https://h", api_key=KEY, insecure_ssl=True), "m")
    assert "certificates are NOT verified" in said
    (said,) = warnings(made(api_base="http://h", api_key=KEY), "m")
    assert "the key goes to h unencrypted" in said
    assert warnings(made(api_base="http://localhost", api_key=KEY, insecure_ssl=True), "m") == []
    (said,) = warnings(made(api_base="http://h", models=["a"]), "m")
    assert 'model = "m" is served by no upstream' in said
    assert warnings(made(api_base="http://h", models=["a", "m=x"]), "m") == []
    assert KEY not in said
