"""What an upstream is asked: the body and the headers that follow from a handoff, or from an HTTP request. Pure.

A handoff is decoded again here, whole, because what the daemon does not know must reach the upstream as it came:
parts of messages, calls of tools, parameters under `options`. A request of the HTTP front's API has been looked at, and
speaks the upstream's own language: all of it goes on, but for what makes it a stream.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from backends.openai.errors import RequestError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from backends.interface import Request
    from backends.openai.options import Defaults
    from backends.relay import RelayFormat

REQUEST_ID_CHARACTERS_MAX = 128
TEST_PATTERN_CHARACTERS_MAX = 64
MODEL_CHARACTERS_MAX = 256
USAGE = {"include_usage": True}
CHARACTERS_PER_TOKEN = 4  # of English, roughly; where the upstream does not say, an estimate is better than nothing
_CHAT_PATH = "/chat/completions"
_COMPLETIONS_PATH = "/completions"

# What is the daemon's own, or is put into the body by name: never taken over from an HTTP request as it stands.
_SET_HERE = frozenset({"stream", "stream_options", "n"})
_NOT_PARAMETERS = _SET_HERE | frozenset(
    {
        *("user_id", "prompt", "messages", "model", "system", "request_id", "test_pattern", "backend"),
        *("response_headers", "options", "format", "upstream", "traceparent"),
    }
)
# Of a request that speaks the upstream's language: what is put into its body by name.
_NAMED = frozenset({"model", "messages", "stream", "stream_options"})
_SYSTEM_ROLES = frozenset({"system", "developer"})
_encode = msgspec.json.Encoder().encode
_is_request_id = re.compile(r"[!-~]{1,128}").fullmatch
_is_test_pattern = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?").fullmatch
_is_traceparent = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


class Prepared(NamedTuple):
    """A request that is right, ready for any upstream."""

    body: dict[str, Any]  # parameters that the request gives itself
    messages: list[object] | None  # None: it is no conversation, and `body` has the prompt
    has_system: bool  # among the messages
    model: str
    format: RelayFormat
    passes_usage: bool
    upstream: str  # the one it names, or empty
    request_id: str
    headers: tuple[tuple[str, str], ...]  # of this request alone
    prompt_characters: int
    path: str = _CHAT_PATH  # behind the base's own
    stream_options: Mapping[str, Any] = {}

    def encoded(self, model: str, defaults: Defaults) -> bytes:
        """The body for one upstream: what the request leaves out is as that has it. Raises RequestError."""
        body: dict[str, Any] = {"model": model}
        if self.messages is not None:
            body["messages"] = self.messages
            if defaults.system and not self.has_system:
                body["messages"] = [{"role": "system", "content": defaults.system}, *self.messages]
        given = self.body
        if defaults.max_tokens and "max_tokens" not in given and "max_completion_tokens" not in given:
            body["max_tokens"] = defaults.max_tokens
        if defaults.temperature >= 0:
            body["temperature"] = defaults.temperature
        if defaults.top_p >= 0:
            body["top_p"] = defaults.top_p
        body.update(given)
        body["stream"] = True
        if defaults.asks_usage or self.passes_usage:
            body["stream_options"] = {**self.stream_options, **USAGE}
        elif self.stream_options:
            body["stream_options"] = self.stream_options
        try:
            return _encode(body)
        except RecursionError:
            raise RequestError("malformed_json", "the request's JSON is nested too deeply") from None


def prepare(request: Request, model: str, style: RelayFormat, randomness: random.Random) -> Prepared:
    """Look at everything once. `model` and `style` count where the request names none. Raises RequestError."""
    fields = request.fields
    said = _said(request)
    if request.endpoint in _PATHS:
        return _spoken(request, said, model, _request_id(request, randomness))
    options = said.get("options")
    if options is None:
        options = {}
    elif not isinstance(options, dict):
        raise _wrong("options", "an object of parameters for the upstream")
    parameters = _parameters(said, cast("dict[str, Any]", options), takes_all=bool(request.headers))
    messages, has_system, characters = _messages(request, said)
    asked = _text(said, "model", MODEL_CHARACTERS_MAX) or model
    upstream = _text(said, "upstream", MODEL_CHARACTERS_MAX)
    form = said.get("format")
    if form is None:
        form = style
    if form not in ("content", "openai"):
        raise _wrong("format", '"content" or "openai"')
    request_id = _request_id(request, randomness)
    return Prepared(
        body=parameters,
        messages=messages,
        has_system=has_system,
        model=asked,
        format=form,
        passes_usage=_asks_usage(said, "") or _asks_usage(cast("dict[str, Any]", options), "options."),
        upstream=upstream,
        request_id=request_id,
        headers=_headers(
            request_id, said.get("traceparent") or request.headers.get("traceparent"), fields.test_pattern
        ),
        prompt_characters=characters,
    )


_PATHS: dict[str, str] = {"chat": _CHAT_PATH, "completions": _COMPLETIONS_PATH}
"""Where an upstream has what the HTTP front's endpoints stand for."""


def _spoken(request: Request, said: dict[str, Any], model: str, request_id: str) -> Prepared:
    """A request of the HTTP front's API. Its fields are right; the conversation is looked at for its length."""
    messages, has_system = None, False
    if request.endpoint == "chat":
        messages, has_system, characters = _messages(request, said)
    else:
        characters = _prompt_characters(said.get("prompt"))
    traceparent = request.headers.get("traceparent")
    given = said.get("stream_options")
    return Prepared(
        body={name: value for name, value in said.items() if value is not None and name not in _NAMED},
        messages=messages,
        has_system=has_system,
        model=_text(said, "model", MODEL_CHARACTERS_MAX) or model,
        format="openai",
        passes_usage=_asks_usage(said, ""),
        upstream="",
        request_id=request_id,
        headers=_headers(request_id, traceparent, request.fields.test_pattern),
        prompt_characters=characters,
        path=_PATHS[request.endpoint],
        stream_options=cast("dict[str, Any]", given) if isinstance(given, dict) else {},
    )


def _prompt_characters(prompt: object) -> int:
    """About how long a prompt is; a token's number stands for as many characters as a token has."""
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, list):
        elements = cast("list[object]", prompt)
        if elements and isinstance(elements[0], int):  # then all of them are
            return CHARACTERS_PER_TOKEN * len(elements)
        return sum(_prompt_characters(one) for one in elements)
    return 0


def _said(request: Request) -> dict[str, Any]:
    if request.decoded is not None:
        return request.decoded
    if not request.raw:
        return {
            name: value
            for name, value in cast("dict[str, Any]", msgspec.to_builtins(request.fields)).items()
            if value is not None
        }
    try:
        found: object = msgspec.json.decode(request.raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("malformed_json", f"the request's data is not JSON that can be relayed: {error}") from None
    if not isinstance(found, dict):
        raise RequestError("not_an_object", "the request's JSON must be an object")
    return cast("dict[str, Any]", found)


def _wrong(field: str, right: str) -> RequestError:
    return RequestError("invalid_value", f"field `{field}` must be {right}", param=field)


def _text(said: dict[str, Any], name: str, characters_max: int) -> str:
    value = said.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > characters_max:
        raise _wrong(name, f"a string of at most {characters_max} characters")
    return value


# ---- the conversation


def _messages(request: Request, said: dict[str, Any]) -> tuple[list[object], bool, int]:
    """The messages, whether one of them is the system's, and about how many characters they have."""
    given = said.get("messages")
    if given is not None and not isinstance(given, list):
        raise _wrong("messages", "a list of messages")
    messages: list[object] = list(cast("list[object]", given or []))
    if not messages:
        # A handoff without anything says Hello, as it always did; an HTTP client has made a mistake.
        if request.endpoint or (request.headers and not isinstance(said.get("prompt"), str)):
            raise RequestError("invalid_value", "messages is required and must be a non-empty array", param="messages")
        messages = [{"role": "user", "content": request.prompt}]
    characters, has_system = 0, False
    for index, message in enumerate(messages):
        role, length = _looked_at(message, index)
        characters += length
        has_system = has_system or role in _SYSTEM_ROLES
    system = request.fields.system
    if system:
        messages = [{"role": "system", "content": system}, *messages]
        characters, has_system = characters + len(system), True
    return messages, has_system, characters


def _looked_at(message: object, index: int) -> tuple[str, int]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise _wrong(where, "an object with a role and content")
    found = cast("dict[str, Any]", message)
    role, content = found.get("role"), found.get("content")
    if not isinstance(role, str) or not role:
        raise _wrong(f"{where}.role", 'a string such as "user", "assistant", "system" or "tool"')
    if isinstance(content, str):
        return role, len(content)
    if content is None:
        return role, 0
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", "a string or a list of parts")
    length = 0
    for number, part in enumerate(cast("list[object]", content)):
        if not isinstance(part, dict):
            raise _wrong(f"{where}.content[{number}]", 'an object such as {"type":"text","text":"..."}')
        text = cast("dict[str, Any]", part).get("text")
        length += len(text) if isinstance(text, str) else 0
    return role, length


# ---- parameters


def _number(low: float, high: float) -> Callable[[Any], str]:
    def check(value: Any) -> str:  # noqa: ANN401  (anything may come)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_number and low <= value <= high else f"a number, {low:g} to {high:g}"

    return check


def _integer(low: int | None = None) -> Callable[[Any], str]:
    right = "an integer" if low is None else f"an integer, {low} or more"

    def check(value: Any) -> str:  # noqa: ANN401
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return "" if is_integer and (low is None or value >= low) else right

    return check


def _of(right: str, *kinds: type) -> Callable[[Any], str]:
    def check(value: Any) -> str:  # noqa: ANN401
        return "" if isinstance(value, kinds) else right

    return check


def _objects(value: Any) -> str:  # noqa: ANN401
    is_right = isinstance(value, list) and all(isinstance(one, dict) for one in cast("list[object]", value))
    return "" if is_right else "a list of objects"


def _stop(value: Any) -> str:  # noqa: ANN401
    is_right = isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(one, str) for one in cast("list[object]", value))
    )
    return "" if is_right else "a string or a list of strings"


_CHECKS: dict[str, Callable[[Any], str]] = {
    "max_tokens": _integer(1),
    "max_completion_tokens": _integer(1),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _integer(),
    "stop": _stop,
    "tools": _objects,
    "tool_choice": _of("a string or an object", str, dict),
    "parallel_tool_calls": _of("true or false", bool),
    "response_format": _of("an object", dict),
    "logprobs": _of("true or false", bool),
    "top_logprobs": _integer(0),
    "logit_bias": _of("an object", dict),
    "reasoning_effort": _of("a string", str),
    "verbosity": _of("a string", str),
    "modalities": _of("a list", list),
    "audio": _of("an object", dict),
    "prediction": _of("an object", dict),
    "metadata": _of("an object", dict),
    "store": _of("true or false", bool),
    "service_tier": _of("a string", str),
    "user": _of("a string", str),
}
"""Parameters of OpenAI's API that a handoff may give beside `prompt`; any other goes under `options`."""


def _parameters(said: dict[str, Any], options: dict[str, Any], *, takes_all: bool) -> dict[str, Any]:
    """What goes into the body as it is. An HTTP request speaks the upstream's own language, so all of it does."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in {"messages", "model"}:
            raise _wrong(f"options.{name}", f"left out: `{name}` is a field of its own")
        if name not in _SET_HERE:
            _check(f"options.{name}", name, value)
            found[name] = value
    for name, value in said.items():
        if value is None or name in _NOT_PARAMETERS:
            continue
        if name in _CHECKS:
            _check(name, name, value)
            found[name] = value
        elif takes_all:
            found[name] = value
    for where, given in (("n", said.get("n")), ("options.n", options.get("n"))):
        if given is not None and (type(given) is not int or given != 1):
            raise _wrong(where, "1: one answer is streamed")
    return found


def _check(where: str, name: str, value: object) -> None:
    check = _CHECKS.get(name)
    fault = check(value) if check is not None and value is not None else ""
    if fault:
        raise _wrong(where, fault)


def _asks_usage(said: dict[str, Any], prefix: str) -> bool:
    options = said.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _wrong(f"{prefix}stream_options", "an object")
    asked = cast("dict[str, Any]", options).get("include_usage")
    if asked is not None and not isinstance(asked, bool):
        raise _wrong(f"{prefix}stream_options.include_usage", "true or false")
    return asked is True


# ---- headers


def _request_id(request: Request, randomness: random.Random) -> str:
    given = request.fields.request_id
    if given is not None and given != "":
        text = str(given)
        if not _is_request_id(text):
            raise _wrong("request_id", f"1 to {REQUEST_ID_CHARACTERS_MAX} printable ASCII characters without spaces")
        return text
    # Anyone on the net may send this one: what cannot be used is left alone.
    header = request.headers.get("x-request-id", "")
    if _is_request_id(header):
        return header
    return f"{randomness.getrandbits(128):032x}"


def _headers(request_id: str, traceparent: object, test_pattern: str | None) -> tuple[tuple[str, str], ...]:
    found = [("X-Request-Id", request_id)]
    # The W3C says of one that is malformed: go on as if there were none.
    if isinstance(traceparent, str) and _is_traceparent(traceparent):
        found.append(("traceparent", traceparent))
    if test_pattern:
        if not _is_test_pattern(test_pattern):
            raise _wrong("test_pattern", f"at most {TEST_PATTERN_CHARACTERS_MAX} printable ASCII characters")
        found.append(("X-Test-Pattern", test_pattern))
    return tuple(found)
