"""Plans by name, for the X-Test-Pattern header and for hand: those of the mock-llm-api, and every fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.upstream.events import ask_usage, comment, delta, error_event, event, openai_stream, tool_call
from tests.upstream.plan import Fault, Framing, Plan, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

UNICODE = ["😀", "🎉", "👩‍👩‍👧", "你", "好", "世界", "𝄞", "𠜎", "naïve ", "Ωmega ", "Привет"]
SHORT = "Hello world! This is a test. Each chunk is small."
LONG = [letter * 4096 for letter in "abc"]
WORDS = ["The", " quick", " brown", " fox"]
JSON = "application/json"


def _error(status: int, **headers: str) -> Plan:
    body = f'{{"error":{{"message":"planned {status}","type":"planned","param":null,"code":null}}}}'
    return Plan(
        [body.encode()],
        status=status,
        content_type=JSON,
        headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()),
        framing=Framing.LENGTH,
    )


def _abort(argument: str) -> Plan:
    count = int(argument) if argument.isdigit() else 5
    return Plan(openai_stream([f"chunk {n} " for n in range(count)], finish=None, done=False))


def _finish(argument: str) -> Plan:
    return Plan(openai_stream([f"chunk {n} " for n in range(6)], finish=argument or "stop"))


def _paced(argument: str) -> Plan:
    count = int(argument) if argument.isdigit() else 20
    return Plan(openai_stream([f"token_{n} " for n in range(count)], usage=ask_usage(5, count)), interval_s=0.05)


def _giant(argument: str) -> Plan:
    size = int(argument) if argument.isdigit() else 1 << 20
    return Plan(openai_stream(["x" * size]))


_WITH_ARGUMENT: Mapping[str, Callable[[str], Plan]] = {
    "abort": _abort,
    "finish": _finish,
    "paced": _paced,
    "giant": _giant,
    "status": lambda argument: _error(int(argument) if argument.isdigit() else 500),
    "429": lambda argument: _error(429, Retry_After=argument or "1"),
}

PATTERNS: Mapping[str, Plan] = {
    "unicode": Plan(openai_stream(UNICODE)),
    "short": Plan(openai_stream(list(SHORT))),
    "long": Plan(openai_stream(LONG)),
    "usage": Plan(openai_stream(WORDS, usage=ask_usage(7, 4))),
    "tools": Plan([delta(role="assistant", content=None), tool_call("look", "{}"), *openai_stream([], role=False)]),
    "comments": Plan([comment("OPENROUTER PROCESSING"), *openai_stream(WORDS), comment("bye")]),
    "bytewise": Plan(openai_stream(WORDS), wire_bytes=1),
    "one-byte-chunks": Plan(openai_stream(WORDS), piece_bytes=1),
    "slow-first-token": Plan(openai_stream(WORDS), body_delay_s=5.0),
    "silent": Plan(fault=Fault.STALL, fault_in_head=True, fault_at=0),
    "silent-after-head": Plan(fault=Fault.STALL),
    "stall": Plan(openai_stream(WORDS, finish=None, done=False), fault=Fault.STALL),
    "reset": Plan(openai_stream(WORDS, finish=None, done=False), fault=Fault.RESET),
    "cut": Plan(openai_stream(WORDS, finish=None, done=False), fault=Fault.CUT),
    "no-done": Plan(openai_stream(WORDS, done=False)),
    "error-event": Plan([*openai_stream(WORDS, finish=None, done=False), error_event("the model fell over")]),
    "malformed-event": Plan([event('{"choices":['), *openai_stream(WORDS)]),
    "malformed-chunk": Plan(openai_stream(WORDS), size_lines={2: b"xyz\r\n"}),
    "too-long": Plan(openai_stream(WORDS), framing=Framing.LENGTH, length_extra=10, fault=Fault.CUT),
    "too-short": Plan(openai_stream(WORDS), framing=Framing.LENGTH, length_extra=-20),
    "html": Plan([b"<html>"], content_type="text/html", framing=Framing.LENGTH),
    "redirect": Plan(status=307, content_type="", headers=(("Location", "/elsewhere"),), framing=Framing.LENGTH),
    "gzip": Plan([b"\x1f\x8b"], headers=(("Content-Encoding", "gzip"),)),
    "pause": Plan([*openai_stream(WORDS, finish=None, done=False), Wait(3), *openai_stream(WORDS, role=False)]),
}
"""Names without an argument."""


def plan_named(text: str) -> Plan:
    """The plan of `NAME` or `NAME:ARGUMENT`; the default answer for a name that is not known, as mock-llm-api does."""
    name, _, argument = text.partition(":")
    if name in _WITH_ARGUMENT:
        return _WITH_ARGUMENT[name](argument)
    return PATTERNS.get(name, Plan(openai_stream(WORDS)))


def names() -> list[str]:
    """What `plan_named` knows."""
    return sorted([*PATTERNS, *(f"{name}:ARGUMENT" for name in _WITH_ARGUMENT)])
