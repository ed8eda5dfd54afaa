"""What a backend is: a class that is given a request and says where the bytes of its stream come from.

A backend overrides one of two methods. `open` describes a stream that needs no thread of the pool: the data plane
makes it, or relays an upstream's (main thread, must not block). `chunks` yields its pieces (on a thread of the pool,
may block). docs/backends.md has an example. Nothing here knows the daemon.
"""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import msgspec

from backends.sse import DONE, escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.relay import Relay

TEXT_BYTES_MAX = 64
PROMPT_DEFAULT = "Hello"

Format = Literal["content", "openai", "raw"]
# Which of the HTTP front's endpoints a request came to; empty for a handoff.
Endpoint = Literal["", "chat", "completions", "audio"]


class BackendError(Exception):
    """A failure with a status of its own: sent as it is before the first byte, as an error event after it.

    Its message goes to the client, so it must hold no secret. Any other exception is a 500 that says nothing.
    """

    # Of a subclass that does not call this constructor.
    status = 500
    message = "the backend failed"
    param: str | None = None

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        """`status` is 400 to 599; 502 and 504 usually mean a failing upstream. `param` is the field at fault."""
        assert 400 <= status <= 599, f"{status} is no error"
        super().__init__(message)
        self.status = status
        self.message = str(message)  # an exception is often given in place of its text
        self.param = param


class OptionError(ValueError):
    """An option cannot be used: raised by a constructor or a reload. The message names the key, and what is right."""


class BodyTruncated(Exception):  # noqa: N818  (the condition has this name everywhere in the project)
    """The upload ended before its end: the client left, or its framing was wrong."""


class Cancelled(BaseException):
    """The stream is over: raised where a backend waits through its request. Let it pass."""


class Message(msgspec.Struct, gc=False):
    """One message of a conversation. `content` may be a list of parts, as OpenAI has them."""

    role: str = "user"
    content: str | list[Any] | None = None

    def text(self) -> str:
        """The text of the message: its content, or its text parts put together."""
        if isinstance(self.content, str):
            return self.content
        parts = cast("list[dict[str, object]]", [part for part in self.content or [] if isinstance(part, dict)])
        return "".join(str(part.get("text", "")) for part in parts)


class Fields(msgspec.Struct):
    """The fields of a handoff that are understood; others are ignored here and found in `Request.options`."""

    user_id: int | str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    system: str | None = None
    request_id: int | str | None = None
    test_pattern: str | None = None
    backend: str | None = None
    response_headers: dict[str, Any] | None = None


class Control(Protocol):
    """How a request's stream is doing; implemented by whoever runs the backend."""

    def cancelled(self) -> bool:
        """Whether the stream is over, because the client left or a deadline passed."""
        ...

    def cancel_fd(self) -> int:
        """A descriptor that is readable whenever `cancelled` is worth asking."""
        ...

    def pause(self, seconds: float) -> bool:
        """Wait so long, or until the stream is over. True when it is over."""
        ...


class NeverCancelled:
    """The control of a request that nobody waits for: opened in the plane, or made in a test."""

    def cancelled(self) -> bool:
        """No."""
        return False

    def cancel_fd(self) -> int:
        """There is none."""
        return -1

    def pause(self, seconds: float) -> bool:
        """Sleep."""
        time.sleep(seconds)
        return False


_NEVER = NeverCancelled()


class Request:
    """One stream's request, as its backend sees it. Ask it only on the thread that runs the backend."""

    __slots__ = ("body", "control", "decoded", "endpoint", "fields", "headers", "raw")

    def __init__(
        self, fields: Fields, raw: bytes = b"", headers: Mapping[str, str] | None = None, endpoint: Endpoint = ""
    ) -> None:
        """`raw` is the JSON that `fields` came from; `headers` those of an HTTP request, in lower case."""
        self.endpoint: Endpoint = endpoint
        self.fields = fields
        self.raw = b"" if raw == b"\0" else raw  # one NUL byte stands for an empty handoff
        # What `raw` says, where somebody has found out; not to be changed. It is there for `open` and `form` alone.
        self.decoded: dict[str, Any] | None = None
        self.headers: Mapping[str, str] = headers or {}
        self.body: Iterator[bytes] = iter(())
        self.control: Control = _NEVER

    @property
    def prompt(self) -> str:
        """The last user message, else the prompt, else `Hello`."""
        for message in reversed(self.fields.messages or []):
            if message.role == "user":
                return message.text()
        return PROMPT_DEFAULT if self.fields.prompt is None else self.fields.prompt

    @property
    def messages(self) -> list[Message]:
        """The conversation; a prompt alone is one user message. `system` comes first where it is given."""
        messages = self.fields.messages or [Message("user", self.prompt)]
        if self.fields.system:
            return [Message("system", self.fields.system), *messages]
        return messages

    @property
    def model(self) -> str | None:
        """The model asked for."""
        return self.fields.model

    @property
    def user_id(self) -> int | str | None:
        """Who asks, as far as the sender of the handoff says."""
        return self.fields.user_id

    @property
    def options(self) -> dict[str, Any]:
        """Everything the handoff said, unknown fields included."""
        if self.decoded is not None:
            return dict(self.decoded)
        return dict(msgspec.json.decode(self.raw)) if self.raw else {}

    def cancelled(self) -> bool:
        """Whether the stream is over: a backend that waits for something else asks now and then."""
        return self.control.cancelled()

    @property
    def cancel_fd(self) -> int:
        """Readable whenever `cancelled` is worth asking: for a backend that polls descriptors of its own."""
        return self.control.cancel_fd()

    def pause(self, seconds: float) -> bool:
        """Wait so long, or until the stream is over. True when it is over."""
        return self.control.pause(seconds)


class Mark(enum.Enum):
    """What is rendered into a script's message when it is sent."""

    INDEX = 1  # the message's number in the stream, in decimal; in the end, how many messages came before it
    TEXT = 2  # the stream's text
    CLOSING = 3  # the stream's second text


Parts = tuple[bytes | Mark, ...]


class Script:
    """Messages the data plane can render by itself: a stream repeats them until it has sent as many as it should.

    Compared by identity, and announced in `Backend.scripts`, because scripts are copied into the plane once, at start.
    """

    __slots__ = ("end", "end_counts", "messages")

    def __init__(self, messages: tuple[Parts, ...], end: bytes | Parts = DONE, *, end_counts: bool = False) -> None:
        """`end` is sent after the last message of a stream: at once, or, where it `end_counts`, as one message more.

        An end that counts waits for its turn in the pace.
        """
        assert messages, "a script has messages"
        self.messages = messages
        self.end: Parts = end if isinstance(end, tuple) else (end,) if end else ()
        self.end_counts = end_counts

    def render(self, index: int, text: bytes, closing: bytes = b"") -> bytes:
        """Message `index` of a stream: the specification of what the plane does."""
        return rendered(self.messages[index % len(self.messages)], index, text, closing)

    def render_end(self, message_count: int, text: bytes, closing: bytes = b"") -> bytes:
        """The end of a stream of so many messages: the specification of what the plane does."""
        return rendered(self.end, message_count, text, closing)


def rendered(parts: Parts, number: int, text: bytes, closing: bytes) -> bytes:
    """Bytes and marks put together."""
    marks = {Mark.INDEX: b"%d" % number, Mark.TEXT: text, Mark.CLOSING: closing}
    return b"".join(part if isinstance(part, bytes) else marks[part] for part in parts)


class Paced(NamedTuple):
    """A stream that the data plane makes: `opening` right behind the head, then `message_count` messages of a script.

    Nothing leaves for `latency_ms`, not even the head. Messages follow one another every `interval_ps` picoseconds (0:
    as fast as the socket takes them), the opening being the first where there is one. `text` and `closing` are at most
    64 bytes each: what the script's marks of these names become.
    """

    script: Script
    message_count: int
    interval_ps: int = 0
    latency_ms: int = 0
    text: bytes = b""
    opening: bytes = b""
    closing: bytes = b""

    def end(self) -> bytes:
        """The script's end, as this stream has it."""
        return self.script.render_end(self.message_count, self.text, self.closing)

    def finish(self) -> bytes:
        """What is left to be sent when `paced_chunks` has yielded everything that counts."""
        return b"" if self.script.end_counts else self.end()


class Form(NamedTuple):
    """How one stream is written, where its request may choose: it takes the place of what the backend's class says."""

    format: Format
    content_type: str = "text/event-stream"


class Backend:
    """Base of every backend. One instance serves all streams, `chunks` on many threads at once."""

    format: Format = "content"  # of its errors: problem and event, OpenAI's envelope, or no events
    end: bytes = DONE  # sent after the last chunk of a stream that ended well

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options` is the backend's section of the configuration."""
        self.options = options

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> list[str]:  # noqa: ARG003
        """Look at a section without opening anything, for `--check-config`: warnings. Raises OptionError."""
        return []

    def reload(self, options: Mapping[str, Any]) -> None:
        """The configuration was read again. Takes effect on streams that start from now."""
        self.options = options

    def scripts(self) -> tuple[Script, ...]:
        """Every script that `open` may name. Asked once, at start."""
        return ()

    def close(self) -> None:
        """The daemon ends, and no stream is left. Main thread."""

    def open(self, request: Request) -> Paced | Relay | None:  # noqa: ARG002
        """A stream that needs no thread, or None where `chunks` is to be used. Main thread: must not block.

        A BackendError or a RelayError refuses the request.
        """
        return None

    def form(self, request: Request) -> Form | None:  # noqa: ARG002
        """How the pieces of `chunks` are written, or None where the class says it. Main thread: must not block.

        A BackendError refuses the request. The HTTP front makes its head itself, so it asks, too.
        """
        return None

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        """The stream's pieces: text, which is wrapped as `data: {"content":...}`, or bytes, sent as they are."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither open nor chunks")


def paced_chunks(paced: Paced, request: Request) -> Iterator[bytes]:
    """A paced stream's pieces, for when it runs on a thread. Stops when the stream is over.

    An end that does not count is not among them: `finish` has it.
    """
    if paced.latency_ms > 0 and request.pause(paced.latency_ms / 1000):
        return
    first_ns = time.monotonic_ns()
    if paced.opening:
        yield paced.opening
        first_ns += paced.interval_ps // 1000
    script, count = paced.script, paced.message_count
    for index in range(count + script.end_counts):
        wait_ns = first_ns + index * paced.interval_ps // 1000 - time.monotonic_ns()
        if wait_ns > 0 and request.pause(wait_ns / 1e9):
            return
        yield script.render(index, paced.text, paced.closing) if index < count else paced.end()


def text_of(value: object) -> bytes:
    """A value as a stream's text: JSON-escaped, at most 64 bytes, never cut inside a character or an escape."""
    text = escape(str(value)[:TEXT_BYTES_MAX]).encode(errors="replace")
    if len(text) <= TEXT_BYTES_MAX:
        return text
    kept = b""
    for character in str(value):
        piece = escape(character).encode(errors="replace")
        if len(kept) + len(piece) > TEXT_BYTES_MAX:
            break
        kept += piece
    return kept
