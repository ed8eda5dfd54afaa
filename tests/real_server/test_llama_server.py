"""Streams that are relayed from a real server: llama.cpp's, with a model of random weights."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from scripts.bench import proxies
from tests.behaviour.daemon_process import HEAD, Answer, Daemon, read_all
from tests.real_server.environment import API_KEY, KEEP_ALIVE_S, MODEL, SLOTS, RealServer, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.external

# Without chance, so that the server says the same when it is asked directly.
ASKED: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "seed": 3}
FOREVER = 30_000  # tokens: minutes of work, as each takes longer than the one before


def question(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **ASKED}


def events_of(answer: Answer) -> list[dict[str, Any]]:
    blocks = answer.body.decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""], blocks[-3:]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def last_row(daemon: Daemon, request_id: str) -> dict[str, Any]:
    """The ledger's row of one stream; its thread may still be about to write it."""
    ledger = daemon.directory / "ledger.jsonl"
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        rows = [json.loads(line) for line in ledger.read_text().split("\n")[:-1]] if ledger.exists() else []
        found[:] = [row for row in rows if row["request_id"] == request_id]
        return bool(found)

    wait_until(is_there, f"a row for {request_id}")
    return found[0]


def test_the_text_is_the_servers(daemon: Daemon, server: RealServer) -> None:
    asked = question('Sag etwas Schönes: "日本" \\ 🙂')
    answer = daemon.ask(asked)
    direct = server.complete({"model": MODEL, **asked})
    assert answer.head == HEAD
    assert "".join(answer.contents) == direct["choices"][0]["message"]["content"]
    assert len(answer.contents) == ASKED["max_tokens"]
    assert any(ord(character) > 127 for content in answer.contents for character in content)


def test_events_pass_as_the_server_writes_them(daemon: Daemon, server: RealServer) -> None:
    asked = question("And in its own format?")
    events = events_of(daemon.ask({**asked, "format": "openai"}))
    direct = server.complete({"model": MODEL, **asked})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert {event["model"] for event in events} == {MODEL}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    contents = [event["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(contents) == direct["choices"][0]["message"]["content"]


def test_usage_comes_to_who_asked_for_it(daemon: Daemon) -> None:
    asked = {**question("How much was that?"), "format": "openai", "stream_options": {"include_usage": True}}
    *others, usage = events_of(daemon.ask(asked))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == ASKED["max_tokens"]
    assert usage["usage"]["prompt_tokens"] > 10
    assert not any("usage" in event for event in others)


def test_the_ledger_has_the_servers_numbers(daemon: Daemon) -> None:
    request_id = f"paid-{daemon.kernel}"
    daemon.ask({**question("Who pays?"), "request_id": request_id, "user_id": 77})
    row = last_row(daemon, request_id)
    assert (row["completion_tokens"], row["estimated"], row["end_reason"]) == (ASKED["max_tokens"], False, "complete")
    assert row["prompt_tokens"] > 10
    assert (row["model_asked"], row["model_answered"], row["user"]) == (MODEL, MODEL, 77)


def test_what_the_server_refuses_is_refused(daemon: Daemon) -> None:
    too_long = "a " * 40_000  # more than a slot's context
    answer = daemon.ask(question(too_long))
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["type"] == "exceed_context_size_error"
    answer = daemon.ask({**question("x"), "options": {"response_format": {"type": "no such thing"}}})
    assert answer.status == 400
    assert "response_format" in json.loads(answer.body)["error"]["message"]


def test_the_servers_work_stops_when_the_client_leaves(daemon: Daemon, server: RealServer) -> None:
    wait_until(lambda: server.busy_slots() == 0, "an idle server")
    before = server.metric("tokens_predicted_total")
    client = daemon.open({**question("Forever?"), "max_tokens": FOREVER, "request_id": f"left-{daemon.kernel}"})
    assert client.recv(4096)
    assert server.busy_slots() == 1
    client.close()
    took_s = wait_until(lambda: server.busy_slots() == 0, "the work stopped")
    assert took_s < 2.0
    assert server.metric("tokens_predicted_total") - before < FOREVER / 2
    assert last_row(daemon, f"left-{daemon.kernel}")["end_reason"] == "client_gone"


def test_a_client_that_leaves_the_servers_queue_is_let_go_of(daemon: Daemon, server: RealServer) -> None:
    wait_until(lambda: server.busy_slots() == 0, "an idle server")
    with contextlib.ExitStack() as stack:
        for _ in range(SLOTS):
            stack.enter_context(daemon.open({**question("Hold it"), "max_tokens": FOREVER})).recv(4096)
        # No token comes: all slots are taken. The server itself looks after who waits only when a slot is free.
        waiting = daemon.open({**question("Is it my turn?"), "request_id": f"waited-{daemon.kernel}"})
        wait_until(lambda: server.metric("requests_deferred") == 1, "a request that waits")
        waiting.close()
        assert last_row(daemon, f"waited-{daemon.kernel}")["end_reason"] == "client_gone"
    wait_until(lambda: server.busy_slots() == 0, "the work stopped")


def test_more_streams_than_the_server_has_slots_for(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.open(question(f"Number {index}"))) for index in range(20)]
        answers = [read_all(client) for client in clients]
    assert [len(answer.contents) for answer in answers] == [ASKED["max_tokens"]] * 20
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)


def test_connections_that_the_server_ends_after_a_hundred_requests(daemon: Daemon) -> None:
    for index in range(230):
        answer = daemon.ask({**question("Again"), "max_tokens": 2})
        assert len(answer.contents) == 2, f"request {index}: {answer.raw!r}"


def test_a_kept_connection_that_the_server_has_closed_meanwhile(daemon: Daemon) -> None:
    daemon.ask(question("First"))
    time.sleep(KEEP_ALIVE_S + 0.5)
    answer = daemon.ask(question("Second"))
    assert len(answer.contents) == ASKED["max_tokens"]


@pytest.mark.parametrize("name", sorted(proxies.PROGRAMS))
def test_over_tls_and_http2(server: RealServer, tmp_path: Path, name: str) -> None:
    with proxies.running(name, server.address) as proxy:
        configuration = (
            f'[server]\nbackend = "openai"\n[backend.openai]\napi_base = "{proxy.tls_url}"\nhttp2_enabled = true\n'
            f'ca_file = "{proxy.certificate}"\napi_key = "{API_KEY}"\nmodel = "{MODEL}"\n'
        )
        running = Daemon(tmp_path, "auto", configuration=configuration).start()
        asked = question("And in secret?")
        answer = running.ask(asked)
        client = running.open({**question("Forever?"), "max_tokens": FOREVER})
        assert client.recv(4096)
        client.close()
        wait_until(lambda: server.busy_slots() == 0, "the work stopped")
        assert running.stop() == 0
    direct = server.complete({"model": MODEL, **asked})
    assert "".join(answer.contents) == direct["choices"][0]["message"]["content"]
    assert "Traceback" not in running.log
