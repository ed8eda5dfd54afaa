"""The model `test-model`: OpenAI's completions and chat, token after token at a set rate, for load tests.

Token i of an answer is the text `token_<i> `. A stream of one answer is made in the data plane; several answers, one
that a stop string cuts inside a token, and counts in every event are made here, on a thread of the pool.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn, cast

import msgspec
from msgspec import Meta

from backends.identities import identity
from backends.interface import (
    TEXT_BYTES_MAX,
    Backend,
    BackendError,
    Format,
    Mark,
    Message,
    Paced,
    Parts,
    Request,
    Script,
    rendered,
)
from backends.sse import DONE, escape
from backends.stop_search import first_stop, token_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODEL = "test-model"
TOKENS_DEFAULT = 16
TOKENS_MAX = 2**31 - 1
CHOICES_MAX = 128
STOPS_MAX = 4
TOKENS_PER_SECOND_DEFAULT = 120_000
PICOSECONDS_PER_S = 10**12
BATCH_BYTES_MAX = 16_384  # what is due together is handed over together, so much at a time

Finish = Literal["length", "stop"]
TokenCount = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]


class TestModelStreamOptions(msgspec.Struct):
    """OpenAI's, and vLLM's `continuous_usage_stats`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TestModelRequest(msgspec.Struct):
    """The fields of a request that count here. Null is the same as leaving a field out; others are ignored."""

    prompt: str | list[Any] | None = None
    messages: list[Message] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=STOPS_MAX)] | None = None
    include_stop_str_in_output: bool | None = None
    echo: bool | None = None
    stream_options: TestModelStreamOptions | None = None


class Plan(NamedTuple):
    """What one stream consists of. All its answers are alike, but for the prompts that they echo."""

    is_chat: bool
    text: bytes  # what `Mark.TEXT` becomes
    echoes: tuple[str, ...]  # of each answer, in completions that echo
    choices: int
    tokens: int  # whole ones that are sent
    cut: str  # what is sent of the next one, where a stop string is inside it
    made: int  # tokens of one answer, with those that the stop string took away
    finish: Finish
    prompt_tokens: int
    has_usage: bool
    is_continuous: bool  # counts in every event

    def counts(self, completion_tokens: int) -> bytes:
        """What `Mark.CLOSING` becomes in a usage object."""
        total = self.prompt_tokens + completion_tokens
        return b'%d,"completion_tokens":%d,"total_tokens":%d' % (self.prompt_tokens, completion_tokens, total)


# ---- what events look like

_USAGE: Parts = (b'"usage":{"prompt_tokens":', Mark.CLOSING, b"}")
_TOKEN: Parts = (b"token_", Mark.INDEX, b" ")


def _chunk(choices: Parts, usage: Parts, *, is_chat: bool) -> Parts:
    """One event."""
    kind = b"chat.completion.chunk" if is_chat else b"text_completion"
    return (
        b'data: {"id":"chatcmpl-' if is_chat else b'data: {"id":"cmpl-',
        Mark.TEXT,
        b',"object":"' + kind + b'","model":"' + MODEL.encode() + b'","choices":[',
        *choices,
        b"]",
        *((b",", *usage) if usage else ()),
        b"}\n\n",
    )


def _finish_reason(finish: Finish | None) -> bytes:
    return b',"logprobs":null,"finish_reason":' + (b"null" if finish is None else b'"%s"' % finish.encode()) + b"}"


class Forms(NamedTuple):
    """How the events of one kind of stream look. The usage of an event is none, null or counts."""

    is_chat: bool
    usage: Parts

    def text(self, text: Parts, index: int = 0, finish: Finish | None = None) -> Parts:
        """An event with text."""
        if self.is_chat:
            choice = (b'{"index":%d,"delta":{"content":"' % index, *text, b'"}' + _finish_reason(finish))
        else:
            choice = (b'{"text":"', *text, b'","index":%d' % index + _finish_reason(finish))
        return _chunk(choice, self.usage, is_chat=self.is_chat)

    def role(self, index: int = 0) -> Parts:
        """What a conversation's answer begins with."""
        delta = b'{"index":%d,"delta":{"role":"assistant","content":""}' % index + _finish_reason(None)
        return _chunk((delta,), self.usage, is_chat=True)

    def last(self, finish: Finish, index: int = 0) -> Parts:
        """What a conversation's answer ends with."""
        return _chunk((b'{"index":%d,"delta":{}' % index + _finish_reason(finish),), self.usage, is_chat=True)

    def counts(self) -> Parts:
        """The event with the counts of the whole stream."""
        return _chunk((), _USAGE, is_chat=self.is_chat)


def _forms(*, is_chat: bool, has_usage: bool, is_continuous: bool = False) -> Forms:
    if is_continuous:
        return Forms(is_chat, _USAGE)
    return Forms(is_chat, (b'"usage":null',) if has_usage else ())


def _joined(parts: Parts) -> Parts:
    """The same with as few parts as possible: the plane copies each by itself."""
    pieces: list[bytes | Mark] = []
    for part in parts:
        if isinstance(part, bytes) and pieces and isinstance(last := pieces[-1], bytes):
            pieces[-1] = last + part
        else:
            pieces.append(part)
    return tuple(pieces)


def _script(*, is_chat: bool, has_usage: bool, finish: Finish | None) -> Script:
    """One answer in the plane. A completion's last token says why it is the last; without tokens `finish` is None."""
    forms = _forms(is_chat=is_chat, has_usage=has_usage)
    end: Parts = (*(forms.counts() if has_usage else ()), DONE)
    if finish is not None:
        end = (*(forms.last(finish) if is_chat else forms.text(_TOKEN, finish=finish)), *end)
    return Script((_joined(forms.text(_TOKEN)),), _joined(end), end_counts=finish is not None and not is_chat)


_REASONS: tuple[Finish, ...] = ("length", "stop")
_SCRIPTS: dict[tuple[bool, bool, Finish | None], Script] = {
    (is_chat, has_usage, finish): _script(is_chat=is_chat, has_usage=has_usage, finish=finish)
    for is_chat, has_usage in ((False, False), (False, True), (True, False), (True, True))
    for finish in (_REASONS if is_chat else (*_REASONS, None))
}


class TestModel(Backend):
    """Options: those of [backend.test_model]."""

    __test__ = False  # its name is the model's: no test is in it
    format: Format = "openai"

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Read the options."""
        super().__init__(options)
        self.reload(options)

    def reload(self, options: Mapping[str, Any]) -> None:
        """The rate, for streams that start from now."""
        self.options = options
        rate = int(options.get("tokens_per_second", TOKENS_PER_SECOND_DEFAULT))
        self._interval_ps = PICOSECONDS_PER_S // rate if rate > 0 else 0

    def scripts(self) -> tuple[Script, ...]:
        """One for each kind of stream that the plane makes."""
        return tuple(_SCRIPTS.values())

    def open(self, request: Request) -> Paced | None:
        """The stream, where the plane can make it. Raises BackendError 400 for a field that is wrong."""
        plan = plan_of(request)
        closing = plan.counts(plan.made) if plan.has_usage else b""
        empty_stop = plan.tokens == 0 and plan.finish == "stop" and not plan.is_chat
        if plan.choices > 1 or plan.cut or plan.is_continuous or empty_stop or len(closing) > TEXT_BYTES_MAX:
            return None
        has_last = plan.is_chat or plan.tokens > 0
        script = _SCRIPTS[plan.is_chat, plan.has_usage, plan.finish if has_last else None]
        opening = b"".join(_openings(plan))
        return Paced(script, plan.tokens - script.end_counts, self._interval_ps, 0, plan.text, opening, closing)

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        """The stream's events, those that are due together at once."""
        plan = plan_of(request)
        interval_ps, begin_ns = self._interval_ps, time.monotonic_ns()
        batch: list[bytes] = []
        batch_bytes = 0
        for number, event in enumerate(events(plan)):
            wait_ns = begin_ns + number * interval_ps // 1000 - time.monotonic_ns() if interval_ps > 0 else 0
            if batch and (wait_ns > 0 or batch_bytes >= BATCH_BYTES_MAX):
                yield b"".join(batch)
                batch.clear()
                batch_bytes = 0
            if wait_ns > 0 and request.pause(wait_ns / 1e9):
                return
            batch.append(event)
            batch_bytes += len(event)
        if plan.has_usage:
            counts = _forms(is_chat=plan.is_chat, has_usage=True).counts()
            batch.append(rendered(counts, 0, plan.text, plan.counts(plan.made * plan.choices)))
        yield b"".join(batch)


# ---- a stream event by event, as it is made on a thread


def _openings(plan: Plan) -> Iterator[bytes]:
    """What each answer begins with: its role in a conversation, its prompt where a completion echoes it."""
    forms = _forms(is_chat=plan.is_chat, has_usage=plan.has_usage, is_continuous=plan.is_continuous)
    closing = plan.counts(0)
    if plan.is_chat:
        for index in range(plan.choices):
            yield rendered(forms.role(index), 0, plan.text, closing)
    finish = plan.finish if plan.made == 0 else None
    for index, echo in enumerate(plan.echoes):
        text = (escape(echo).encode(errors="replace"),)
        yield rendered(forms.text(text, index, finish), 0, plan.text, closing)


def events(plan: Plan) -> Iterator[bytes]:
    """Every event of a stream but for those behind its answers. Answers take turns."""
    yield from _openings(plan)
    if plan.made > 0:
        yield from _tokens(plan)
    if plan.is_chat:
        forms = _forms(is_chat=True, has_usage=plan.has_usage, is_continuous=plan.is_continuous)
        for index in range(plan.choices):
            yield rendered(forms.last(plan.finish, index), 0, plan.text, plan.counts(plan.made * plan.choices))


def _tokens(plan: Plan) -> Iterator[bytes]:
    forms = _forms(is_chat=plan.is_chat, has_usage=plan.has_usage, is_continuous=plan.is_continuous)
    indexes = range(plan.choices)
    middle = [_joined(forms.text(_TOKEN, index)) for index in indexes]
    # The last text of a completion says why it is the last. It may be cut, or empty.
    whole = plan.tokens if plan.is_chat else plan.tokens - (not plan.cut)
    counts = b""
    for number in range(max(whole, 0)):
        for index in indexes:
            if plan.is_continuous:
                counts = plan.counts(number * plan.choices + index + 1)
            yield rendered(middle[index], number, plan.text, counts)
    if plan.is_chat and not plan.cut:
        return
    last: Parts = (plan.cut.encode(),) if plan.cut or plan.tokens == 0 else _TOKEN
    finish = None if plan.is_chat else plan.finish
    for index in indexes:
        counts = plan.counts(max(whole, 0) * (plan.choices - index - 1) + plan.made * (index + 1))
        yield rendered(forms.text(last, index, finish), whole, plan.text, counts)


# ---- what a request asks for


def plan_of(request: Request) -> Plan:
    """What the stream of a request consists of. Raises BackendError 400 for a field that is wrong."""
    asked = _asked(request.raw)
    is_chat = request.endpoint == "chat" or (request.endpoint == "" and asked.messages is not None)
    limit = asked.max_tokens
    if is_chat and asked.max_completion_tokens is not None:
        limit = asked.max_completion_tokens
    limit = TOKENS_DEFAULT if limit is None else limit
    prompts = _prompts(asked, is_chat=is_chat)
    choices = (asked.n or 1) * len(prompts)
    if choices > CHOICES_MAX:
        _refuse("n", f"with {len(prompts)} prompts these are {choices} answers, and {CHOICES_MAX} are allowed")
    tokens, cut, made, finish = _extent(asked, limit)
    options = asked.stream_options or TestModelStreamOptions()
    has_usage = bool(options.include_usage)
    # Each prompt is shown as often as it is answered, and made once: it may have a million tokens.
    shown = map(_shown, prompts) if asked.echo and not is_chat else ()
    echoes = [text for text in shown for _ in range(asked.n or 1)]
    return Plan(
        is_chat=is_chat,
        text=f'{identity(24)}","created":{int(time.time())}'.encode(),
        echoes=tuple(echoes),
        choices=choices,
        tokens=tokens,
        cut=cut,
        made=made,
        finish=finish,
        prompt_tokens=sum(map(_length, prompts)),
        has_usage=has_usage,
        is_continuous=has_usage and bool(options.continuous_usage_stats),
    )


def _asked(raw: bytes) -> TestModelRequest:
    try:
        return msgspec.json.decode(raw, type=TestModelRequest) if raw else TestModelRequest()
    except msgspec.DecodeError as error:
        told, _, path = str(error).partition(" - at `$.")
        if not path:
            raise BackendError(400, f"the request cannot be read: {told}") from None
        _refuse(path.removesuffix("`"), told[:1].lower() + told[1:])


def _refuse(field: str, why: str) -> NoReturn:
    raise BackendError(400, f"field `{field}` of the request: {why}", param=field)


def _prompts(asked: TestModelRequest, *, is_chat: bool) -> list[str | list[int]]:
    """Every prompt: texts, or the numbers of tokens. A conversation is one."""
    if is_chat:
        return ["\n".join(message.text() for message in asked.messages or [])]
    prompt = asked.prompt
    if not isinstance(prompt, list):
        return [prompt or ""]
    if prompt and (_are_numbers(prompt) or all(isinstance(one, str) for one in prompt)):
        return [cast("list[int]", prompt)] if isinstance(prompt[0], int) else cast("list[str | list[int]]", prompt)
    if prompt and all(map(_are_numbers, prompt)):
        return cast("list[str | list[int]]", prompt)
    _refuse("prompt", "it must be a text, or a list that is not empty: of texts, of token numbers, or of lists of them")


def _are_numbers(values: object) -> bool:
    if not isinstance(values, list):
        return False
    elements = cast("list[object]", values)
    return bool(elements) and all(type(one) is int and one >= 0 for one in elements)


def _length(prompt: str | list[int]) -> int:
    """A word is a token."""
    return len(prompt.split()) if isinstance(prompt, str) else len(prompt)


def _shown(prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else "".join(map(token_text, prompt))


def _extent(asked: TestModelRequest, limit: int) -> tuple[int, str, int, Finish]:
    """How many whole tokens an answer shows, what it shows of the next, how many are made, and why it ends."""
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if "" in stops:
        _refuse("stop", "a stop string has at least one character")
    found = first_stop(stops, limit) if stops else None
    if found is None:
        return limit, "", limit, "length"
    number, characters = found.end if asked.include_stop_str_in_output else found.start
    text = token_text(number)
    made = found.end[0] + 1
    if characters == len(text):
        return number + 1, "", made, "stop"
    return number, text[:characters], made, "stop"
