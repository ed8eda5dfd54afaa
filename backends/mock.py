"""The mock: the 18 messages every daemon of this kind sends, and a load-test generator.

Both are made in the data plane.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from backends.interface import Backend, Format, Mark, Paced, Request, Script, text_of
from backends.sse import DONE, content_event, escape

if TYPE_CHECKING:
    from collections.abc import Mapping

PROMPT_CHARACTERS_MAX = 50
MESSAGE_COUNT = 18
PICOSECONDS_PER_MS = 10**9
PICOSECONDS_PER_S = 10**12
TOKENS_DEFAULT = 16
TOKENS_MAX = 1 << 40
TEST_MODEL = "test-model"

_INFORMATION = (
    "Apache has gone back to its own work: this answer comes straight from the daemon.",
    "Your connection was passed to it as a file descriptor, with SCM_RIGHTS.",
    "No PHP process is waiting for these lines.",
    "Python looked at your request once, to decide what you get.",
    "Since then compiled code has been sending, without the interpreter.",
    "One thread serves every open stream of this process.",
    "Each stream costs it a record of a few hundred bytes.",
    "If you close the page now, the daemon notices at once.",
    "A stream that ends early says so, and never ends like this one.",
    "The next lines only count, so that you can see the pace.",
)
_HEAD, _TAIL = content_event("|").split(b"|")
_REST = (
    (_HEAD + b"User ID: ", Mark.TEXT, _TAIL),
    *((content_event(line),) for line in _INFORMATION),
    *((content_event(f"This is message {number} of {MESSAGE_COUNT}."),) for number in range(13, MESSAGE_COUNT)),
    (content_event("[DONE-CONTENT]"),),
)
MESSAGES = Script(_REST, DONE)
CONTENT_TOKENS = Script(((_HEAD + b"token_", Mark.INDEX, _TAIL),), DONE)
# The text is the completion's id and its time of creation: `<24 hex digits>","created":<seconds>`.
OPENAI_TOKENS = Script(
    (
        (
            b'data: {"id":"cmpl-',
            Mark.TEXT,
            b',"object":"text_completion","model":"test-model","choices":[{"text":"token_',
            Mark.INDEX,
            b'","index":0,"logprobs":null,"finish_reason":null}]}\n\n',
        ),
    ),
    DONE,
)
_GREETING = (_HEAD + b"Hello from Python daemon! Prompt: ").decode()
_GREETING_END = _TAIL.decode()


def greeting(prompt: str) -> bytes:
    """The first message: the prompt's first 50 characters."""
    shown = prompt if len(prompt) <= PROMPT_CHARACTERS_MAX else prompt[:PROMPT_CHARACTERS_MAX] + "..."
    return (_GREETING + escape(shown) + _GREETING_END).encode(errors="replace")


class Mock(Backend):
    """Options: those of [backend.mock], and `message_delay_ms` of [streaming]."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Read the options."""
        super().__init__(options)
        self.reload(options)

    def reload(self, options: Mapping[str, Any]) -> None:
        """Delays, counts and the form of tokens, for streams that start from now."""
        self.options = options
        self.format: Format = options.get("format", "content")
        self._interval_ps = int(options.get("message_delay_ms", 50)) * PICOSECONDS_PER_MS
        self._latency_ms = int(options.get("latency_ms", 0))
        self._tokens = int(options.get("tokens", 0))
        rate = int(options.get("tokens_per_second", 0))
        self._token_interval_ps = PICOSECONDS_PER_S // rate if rate > 0 else 0

    def scripts(self) -> tuple[Script, ...]:
        """The messages, and both forms of tokens."""
        return MESSAGES, CONTENT_TOKENS, OPENAI_TOKENS

    def open(self, request: Request) -> Paced:
        """The messages, or tokens where the configuration or the model says so."""
        fields = request.fields
        if self._tokens > 0 or fields.model == TEST_MODEL:
            return self._token_stream(fields.max_tokens)
        user = fields.user_id
        text = b"0" if user is None else text_of(user)
        return Paced(MESSAGES, MESSAGE_COUNT - 1, self._interval_ps, self._latency_ms, text, greeting(request.prompt))

    def _token_stream(self, max_tokens: int | None) -> Paced:
        count = max_tokens if max_tokens is not None else self._tokens or TOKENS_DEFAULT
        count = min(max(count, 0), TOKENS_MAX)
        if self.format == "openai":
            text = f'{secrets.token_hex(12)}","created":{int(time.time())}'.encode()
            return Paced(OPENAI_TOKENS, count, self._token_interval_ps, self._latency_ms, text)
        return Paced(CONTENT_TOKENS, count, self._token_interval_ps, self._latency_ms)
