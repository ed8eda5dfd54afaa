"""Requests, scripts and streams that run on a thread."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.interface import (
    Backend,
    BackendError,
    Fields,
    Mark,
    Message,
    NeverCancelled,
    Paced,
    Request,
    Script,
    paced_chunks,
    text_of,
)
from backends.sse import content_event


class Pauses(NeverCancelled):
    """A control that remembers pauses instead of sleeping, and is over after so many."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: list[float] = []

    def pause(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return len(self.seconds) >= self.count


def test_the_prompt_of_a_request() -> None:
    assert Request(Fields()).prompt == "Hello"
    assert Request(Fields(prompt="")).prompt == ""
    assert Request(Fields(prompt="p", messages=[])).prompt == "p"
    assert Request(Fields(messages=[Message("assistant", "a")])).prompt == "Hello"


def test_the_messages_of_a_request() -> None:
    request = Request(Fields(prompt="p", system="s", user_id=5, model="m"))
    assert [(message.role, message.content) for message in request.messages] == [("system", "s"), ("user", "p")]
    assert (request.user_id, request.model) == (5, "m")
    assert Message("user", [{"text": "a"}, "no part", {"type": "image"}, {"text": "b"}]).text() == "ab"
    assert Message("user").text() == ""


def test_unknown_fields_are_options() -> None:
    raw = json.dumps({"prompt": "p", "profile": {"deep": 1}}).encode()
    assert Request(Fields(), raw).options["profile"] == {"deep": 1}
    assert Request(Fields()).options == {}
    known = Request(Fields(), raw)
    known.decoded = {"a": 1}
    assert known.options == {"a": 1}
    assert known.options is not known.decoded
    assert Request(Fields(), b"\0").options == {}


def test_a_request_that_nobody_runs() -> None:
    request = Request(Fields(), headers={"accept": "x"})
    assert not request.cancelled()
    assert request.cancel_fd == -1
    assert not request.pause(0)
    assert list(request.body) == []
    assert request.headers["accept"] == "x"


def test_a_script_repeats_its_messages() -> None:
    script = Script(((b"<", Mark.INDEX, b">"), (Mark.TEXT,)))
    assert [script.render(index, b"t") for index in range(4)] == [b"<0>", b"t", b"<2>", b"t"]


def test_an_end_shows_what_its_stream_has() -> None:
    script = Script(((b"x",),), (b"<", Mark.INDEX, Mark.TEXT, Mark.CLOSING, b">"))
    assert script.render_end(7, b"t", b"c") == b"<7tc>"
    paced = Paced(script, 7, text=b"t", closing=b"c")
    assert paced.end() == paced.finish() == b"<7tc>"
    assert Script(((Mark.CLOSING,),)).render(0, b"t", b"c") == b"c"
    assert Script(((b"x",),), b"").end == ()


def test_an_end_that_counts_takes_its_turn() -> None:
    request = Request(Fields())
    pauses = Pauses(100)
    request.control = pauses
    script = Script(((Mark.INDEX,),), (b"end ", Mark.INDEX, Mark.CLOSING), end_counts=True)
    paced = Paced(script, 2, 10**12, closing=b"c")
    assert list(paced_chunks(paced, request)) == [b"0", b"1", b"end 2c"]
    assert pauses.seconds == pytest.approx([1, 2], abs=0.2)
    assert paced.finish() == b""
    request.control = Pauses(2)
    assert list(paced_chunks(paced, request)) == [b"0", b"1"]


def test_pacing_on_a_thread() -> None:
    request = Request(Fields())
    pauses = Pauses(100)
    request.control = pauses
    paced = Paced(Script(((Mark.INDEX,),)), 3, 10**12, 500, b"", b"opening")
    assert list(paced_chunks(paced, request)) == [b"opening", b"0", b"1", b"2"]
    assert pauses.seconds[0] == 0.5
    assert pauses.seconds[1:] == pytest.approx([1, 2, 3], abs=0.2)


def test_a_paced_stream_on_a_thread_notices_its_end() -> None:
    for count, pieces in ((1, []), (2, [b"opening"]), (3, [b"opening", b"0"])):
        request = Request(Fields())
        request.control = Pauses(count)
        paced = Paced(Script(((Mark.INDEX,),)), 5, 10**12, 1, b"", b"opening")
        assert list(paced_chunks(paced, request)) == pieces


def test_unpaced_means_at_once() -> None:
    began_s = time.monotonic()
    assert len(list(paced_chunks(Paced(Script(((b"x",),)), 1000), Request(Fields())))) == 1000
    assert time.monotonic() - began_s < 1


def test_errors_carry_a_status() -> None:
    assert BackendError(504, "slow").status == 504
    with pytest.raises(AssertionError):
        BackendError(200, "no error")


def test_a_backend_that_overrides_nothing() -> None:
    backend = Backend({"a": 1})
    assert backend.open(Request(Fields())) is None
    assert backend.scripts() == ()
    backend.reload({"a": 2})
    assert backend.options == {"a": 2}
    backend.close()
    with pytest.raises(NotImplementedError):
        backend.chunks(Request(Fields()))


@given(some.text())
def test_content_is_json_whatever_it_says(text: str) -> None:
    event = content_event(text).decode()
    assert event.startswith('data: {"content":"')
    assert event.endswith('"}\n\n')
    assert event.count("\n") == 2
    assert json.loads(event.removeprefix("data: "))["content"] == text.encode(errors="replace").decode()


def test_escapes_are_those_of_the_older_daemons() -> None:
    assert content_event('\\ " \n \r \t \b \f \x00 \x1f \x7f ä \u2028 \U0001f600') == (
        'data: {"content":"\\\\ \\" \\n \\r \\t \\u0008 \\u000c \\u0000 \\u001f \x7f ä \u2028 \U0001f600"}\n\n'.encode()
    )
    assert content_event("\ud800") == b'data: {"content":"?"}\n\n'


@given(some.text(max_size=100))
def test_a_text_never_ends_inside_a_character_or_an_escape(value: str) -> None:
    text = text_of(value)
    assert len(text) <= 64
    shown = json.loads(b'"' + text + b'"')
    whole = value.encode(errors="replace").decode()
    assert whole.startswith(shown)
    assert shown == whole or len(text) > 64 - 6
