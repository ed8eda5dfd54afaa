"""The load-test model on a running daemon: every event there, in OpenAI's shapes, at the rate that was set."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviour.daemon_process import DONE, Daemon, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RATE = 20_000
MODEL = f"[server]\nbackend = 'test_model'\n[backend.test_model]\ntokens_per_second = {RATE}\n"


@pytest.fixture(scope="module")
def model(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose default is the model."""
    directory: Path = tmp_path_factory.mktemp("model")
    running = Daemon(directory, kernel, configuration=MODEL).start()
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "Traceback" not in running.log, running.log[-4000:]


def events_of(body: bytes) -> list[dict[str, Any]]:
    assert body.endswith(DONE)
    return [json.loads(block.removeprefix("data: ")) for block in body.decode().split("\n\n")[:-2]]


@pytest.mark.parametrize("count", [0, 1, 2, 16, 5000])
def test_a_completion_is_an_event_a_token(model: Daemon, count: int) -> None:
    before = model.metric("streaming_daemon_messages_total")
    answer = model.ask({"prompt": "Hello", "max_tokens": count})
    choices = [event["choices"][0] for event in events_of(answer.body)]
    assert [choice["text"] for choice in choices] == [f"token_{number} " for number in range(count)]
    assert [choice["finish_reason"] for choice in choices] == [None] * (count - 1) + ["length"] * (count > 0)
    model.wait_for_metric("streaming_daemon_messages_total", before + count)


def test_a_conversation_with_its_usage(model: Daemon) -> None:
    asked = {"messages": [{"role": "user", "content": "two words"}], "stream_options": {"include_usage": True}}
    *found, last = events_of(model.ask(asked).body)
    deltas = [event["choices"][0]["delta"] for event in found]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == [f"token_{number} " for number in range(16)]
    assert deltas[-1] == {}
    assert (last["choices"], last["usage"]) == (
        [],
        {"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18},
    )


@pytest.mark.parametrize("said", [{"n": 3}, {"stop": "en_15"}, {"prompt": "x" * 5000, "echo": True}])
def test_what_a_thread_makes(model: Daemon, said: dict[str, Any]) -> None:
    answer = model.ask({"prompt": "a", "max_tokens": 50, **said})
    found = events_of(answer.body)
    texts = ["".join(e["choices"][0]["text"] for e in found if e["choices"][0]["index"] == n) for n in range(3)]
    whole = "".join(f"token_{number} " for number in range(50))
    expected = {"n": [whole] * 3, "stop": [whole.partition("en_15")[0], "", ""], "echo": ["x" * 5000 + whole, "", ""]}
    assert texts == next(expected[name] for name in ("n", "stop", "echo") if name in said)


def test_what_is_wrong_is_told_in_openais_form(model: Daemon) -> None:
    answer = model.ask({"n": 0})
    assert answer.status == 400
    error = json.loads(answer.body)["error"]
    assert error["message"].startswith("field `n` of the request")
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("n", [1, 2])
def test_the_rate_is_held(model: Daemon, n: int) -> None:
    """From the first event to the last, in the plane as on a thread."""
    with model.open({"prompt": "x", "max_tokens": RATE // n, "n": n}) as client:
        first = client.recv(200)
        began_s = time.monotonic()
        answer = read_all(client)
        took_s = time.monotonic() - began_s
    assert (first + answer.raw).count(b"data: {") == RATE
    assert RATE / took_s == pytest.approx(RATE, rel=0.05)


def test_a_slow_stream_says_its_last_token_in_time(start: Callable[..., Daemon]) -> None:
    daemon = start(MODEL.replace(str(RATE), "10"))
    with daemon.open({"max_tokens": 3}) as client:
        began_s = time.monotonic()
        assert read_all(client).body.count(b"data: {") == 3
        assert 0.19 < time.monotonic() - began_s < 0.5
