"""What an upstream is asked: the body and the headers that follow from a handoff, and nothing that must not leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviour.daemon_process import DONE
from tests.behaviour.relay_helpers import KEY, TRANSPORTS, Relay, by, by_all, relaying
from tests.upstream import Plan, Request, Upstream, openai_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def tables(upstream: Upstream) -> list[dict[str, object]]:
    other = by("tcp", upstream, "set", api_base=upstream.base.replace("/v1", "/proxy/v2"), api_key="another-key")
    other |= {"system": "Be brief.", "max_tokens": 9, "temperature": 0.5, "top_p": 0.25, "asks_usage": False}
    return [*by_all(upstream), {**other, "headers": {"X-Team": "blue"}, "models": ["alias=real-model"]}]


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("relay")
    with relaying(kernel, directory, tables, "[logging]\nlevel = 'debug'\n", api_key=KEY, attempts_max=1) as relay:
        yield relay
        relay.daemon.wait_idle()
        assert "another-key" not in relay.daemon.log


def asked(relay: Relay, by: str = "tcp", **fields: Any) -> Request:  # noqa: ANN401  (a handoff's)
    """What the upstream was asked for a handoff with these fields."""
    before = len(relay.upstream.requests())
    assert relay.ask(Plan(openai_stream(["ok"])), by=by, **fields).body.endswith(DONE)
    requests = relay.upstream.requests()[before:]
    assert len(requests) == 1
    return requests[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_request_is_a_post_with_the_key(relay: Relay, transport: str) -> None:
    request = asked(relay, transport, prompt="Tell me é", model="m", request_id="id-1", max_tokens=5)
    assert request.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "Tell me é"}],
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.protocol == ("HTTP/2" if transport in {"h2", "h2c"} else "HTTP/1.1")
    assert request.header("Authorization") == f"Bearer {KEY}"
    assert request.header("Content-Type") == "application/json"
    assert request.header("Accept") == "text/event-stream"
    assert request.header("X-Request-Id") == "id-1"
    assert request.header("Accept-Encoding") in {None, "identity"}
    assert (request.header("User-Agent") or "").startswith("streaming-daemon/")
    assert request.header("Content-Length") == str(len(request.body))
    assert request.header("Expect") is None


def test_the_host_is_the_upstreams(relay: Relay) -> None:
    assert asked(relay).header("Host") == f"127.0.0.1:{relay.upstream.tcp_port}"
    assert asked(relay, "tls").header("Host") == f"localhost:{relay.upstream.tls_port}"
    assert asked(relay, "unix").header("Host") == "localhost"


@pytest.mark.parametrize("transport", ["tcp", "h2"])
def test_messages_system_and_options_reach_the_upstream(relay: Relay, transport: str) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]
    options = {"temperature": 0.1, "vendor_parameter": {"deep": [1, None]}, "stop": ["x"]}
    request = asked(relay, transport, messages=messages, system="Be kind.", options=options, seed=5, prompt="not this")
    body = request.json
    assert body["messages"] == [{"role": "system", "content": "Be kind."}, *messages]
    assert {name: body[name] for name in options} == options
    assert body["seed"] == 5
    assert body["stream"] is True
    assert not {"prompt", "system", "options", "request_id", "upstream", "backend"} & set(body)


def test_an_upstream_has_settings_of_its_own(relay: Relay) -> None:
    request = asked(relay, "set", model="alias")
    assert request.path == "/proxy/v2/chat/completions"
    assert request.header("Authorization") == "Bearer another-key"
    assert request.header("X-Team") == "blue"
    assert request.json == {
        "model": "real-model",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "stream": True,
    }


def test_what_the_request_says_wins_over_the_settings(relay: Relay) -> None:
    fields = {"system": "Mine.", "max_tokens": 3, "temperature": 1.5}
    body = asked(relay, "set", model="alias", **fields).json
    assert body["messages"][0] == {"role": "system", "content": "Mine."}
    assert (body["max_tokens"], body["temperature"]) == (3, 1.5)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_traces_and_test_patterns_are_passed_on(relay: Relay, transport: str) -> None:
    request = asked(relay, transport, traceparent=TRACE, test_pattern="finish:stop")
    assert request.header("traceparent") == TRACE
    assert request.header("X-Test-Pattern") == "finish:stop"


def test_a_trace_that_is_malformed_is_left_out(relay: Relay) -> None:
    assert asked(relay, traceparent="00-0-0-00").header("traceparent") is None


def test_a_request_without_an_id_gets_one(relay: Relay) -> None:
    first, second = asked(relay, request_id=None), asked(relay, request_id=None)
    assert first.header("X-Request-Id")
    assert first.header("X-Request-Id") != second.header("X-Request-Id")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_request_of_a_hundred_thousand_bytes_arrives_whole(relay: Relay, transport: str) -> None:
    prompt = "0123456789é" * 7000
    assert asked(relay, transport, prompt=prompt).json["messages"][0]["content"] == prompt


@pytest.mark.parametrize(
    "fields",
    [
        {"api_base": "http://127.0.0.1:1/v1", "api_key": "mine", "api_socket": "/tmp/x"},
        {"langgraph_url": "http://127.0.0.1:1", "langgraph_api_key": "x", "base_url": "http://127.0.0.1:1"},
        {"headers": {"Authorization": "Bearer mine"}},
        {"options": {"api_base": "http://127.0.0.1:1/v1"}},
    ],
)
def test_a_handoff_cannot_send_the_key_elsewhere(relay: Relay, fields: dict[str, Any]) -> None:
    request = asked(relay, **fields)
    assert request.header("Authorization") == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"by": "elsewhere"}, "upstream"),
        ({"by": "http://127.0.0.1:1/v1"}, "upstream"),
        ({"by": "set", "model": "unheard-of"}, "model"),
        ({"format": "xml"}, "format"),
        ({"messages": [{"content": "no role"}]}, "messages[0].role"),
        ({"messages": "no list"}, "messages"),
        ({"temperature": 5}, "temperature"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": [1]}, "options"),
        ({"n": 2}, "n"),
        ({"request_id": "no spaces please"}, "request_id"),
        ({"test_pattern": "a\r\nInjected: yes"}, "test_pattern"),
        ({"stream_options": 5}, "stream_options"),
    ],
)
def test_a_wrong_request_is_refused_and_nobody_is_asked(relay: Relay, fields: dict[str, Any], word: str) -> None:
    before = len(relay.upstream.requests())
    answer = relay.ask(**fields)
    assert answer.status == 400
    assert word in answer.problem["detail"]
    assert len(relay.upstream.requests()) == before


@pytest.mark.parametrize("name", ["traceparent", "model", "prompt"])
def test_line_ends_cannot_be_injected_into_the_head(relay: Relay, name: str) -> None:
    request = asked(relay, **{"request_id": "injecting", name: "x\nInjected: yes\n\n"})
    assert request.header("Injected") is None
