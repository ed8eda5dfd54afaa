"""An OpenAI-compatible upstream that goes wrong on purpose, wherever a test says. Read `plan` first, then `server`."""

from __future__ import annotations

from tests.upstream.events import ask_usage, chunk, comment, delta, error_event, event, openai_stream, tool_call
from tests.upstream.plan import After, Fault, Framing, Gate, Plan, Wait
from tests.upstream.records import Request
from tests.upstream.server import Accept, Upstream, full_backlog

__all__ = [
    "Accept",
    "After",
    "Fault",
    "Framing",
    "Gate",
    "Plan",
    "Request",
    "Upstream",
    "Wait",
    "ask_usage",
    "chunk",
    "comment",
    "delta",
    "error_event",
    "event",
    "full_backlog",
    "openai_stream",
    "tool_call",
]
