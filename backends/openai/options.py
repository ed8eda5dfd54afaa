"""From settings to upstreams: what a table leaves out is the section's, and addresses and keys are looked at once.

Called at start and at a reload, on the main thread. Errors are OptionErrors that name the key. The only I/O of this
package is here: reading a file with a key.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import msgspec

from backends.interface import OptionError
from backends.relay import Origin
from config import VERSION
from config.openai import API_BASE_DEFAULT

if TYPE_CHECKING:
    from config.openai import OpenAIBackend, Upstream

SECTION = "backend.openai"
DEFAULT_NAME = "default"
SOCKET_PATH_BYTES_MAX = 107
KEY_FILE_BYTES_MAX = 16_384
KEY_CHARACTERS_MAX = 4096
_KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
_SOCKET_BASE = "http://localhost/v1"
# Of a header that is added to each request, and may be a secret of another kind.
_names_secret = re.compile(r"auth|key|token|secret|cookie|password|credential|session", re.IGNORECASE).search
_SCHEMES = frozenset({"basic", "bearer", "digest", "token"})
SECRET_CHARACTERS_MIN = 4  # of a part of a header: what is shorter would be found in any text
_is_key = re.compile(r"[!-~]+").fullmatch
_is_url_text = re.compile(r"[!-~]+").fullmatch
_is_version = re.compile(r"v[0-9]+[a-z0-9]*").fullmatch
_is_host = re.compile(r"[0-9A-Za-z._:-]+").fullmatch


@dataclass(frozen=True)
class Defaults:
    """What a request that says nothing else is sent with. Numbers below 0, and 0 tokens, are not sent."""

    system: str
    max_tokens: int
    temperature: float
    top_p: float
    asks_usage: bool


@dataclass(frozen=True)
class BreakerOptions:
    """When an upstream is left alone, and when it is tried again."""

    failures: int  # in a row; 0 = it never opens
    open_s: float
    successes: int
    probes: int


@dataclass(frozen=True)
class UpstreamOptions:
    """One upstream, as the configuration has it."""

    name: str
    where: str  # its section, for messages to the operator
    origin: Origin
    base_path: str  # what requests are posted to lies behind it
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # the same for each request; the key is among them
    key: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)  # what nobody may be told: the key, and what headers have for one
    models: dict[str, str]  # asked for -> sent; empty = any
    defaults: Defaults
    breaker: BreakerOptions
    streams_max: int
    weight: int
    priority: int


def upstream_options(section: OpenAIBackend) -> tuple[UpstreamOptions, ...]:
    """All upstreams of the section, in their order. Raises OptionError."""
    if not section.upstreams:
        return (_upstream_options(section, SECTION, DEFAULT_NAME, 1, 0),)
    found: list[UpstreamOptions] = []
    for index, table in enumerate(section.upstreams):
        where = f"{SECTION}.upstreams[{index}]"
        if any(table.name == other.name for other in found):
            raise OptionError(f"{where}.name = {table.name!r} is refused: another upstream has it")
        merged = _merged(section, table)
        found.append(_upstream_options(merged, where, table.name, table.weight, table.priority))
    return tuple(found)


def _merged(section: OpenAIBackend, table: Upstream) -> OpenAIBackend:
    own = {
        name: value
        for name, value in msgspec.structs.asdict(table).items()
        if value is not None and name not in {"name", "weight", "priority"}
    }
    # A key of its own, in either form, takes the place of the section's in whichever form that is.
    if table.api_key is not None or table.api_key_file is not None:
        own.setdefault("api_key", "")
        own.setdefault("api_key_file", "")
    # And so does an address: a base does not go through the section's socket.
    if table.api_base is not None and table.api_socket is None:
        own["api_socket"] = ""
    return msgspec.structs.replace(section, **own)


def _upstream_options(options: OpenAIBackend, where: str, name: str, weight: int, priority: int) -> UpstreamOptions:
    origin, base_path = _origin(options, where, name)
    key = _key(options, where)
    headers = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "User-Agent": f"streaming-daemon/{VERSION}",
    }
    if "user-agent" in {header.lower() for header in options.headers}:
        del headers["User-Agent"]
    headers.update(options.headers)
    names = {header.lower() for header in headers}
    has_key = bool(key) or not names.isdisjoint(_KEY_HEADERS)
    if origin.scheme == "https" and options.needs_key and not has_key and not _is_local(origin):
        raise OptionError(
            f"{where} has no key, and {origin.authority} is asked by https: set api_key, api_key_file or"
            f" OPENAI_API_KEY, or needs_key = false if it takes requests without one"
        )
    if key and "authorization" not in names:
        headers["Authorization"] = f"Bearer {key}"
    return UpstreamOptions(
        name=name,
        where=where,
        origin=origin,
        base_path=base_path,
        headers=tuple(headers.items()),
        key=key,
        secrets=_secrets(key, headers),
        models=_models(options, where),
        defaults=Defaults(options.system, options.max_tokens, options.temperature, options.top_p, options.asks_usage),
        breaker=BreakerOptions(
            options.breaker_failures, options.breaker_open_s, options.breaker_successes, options.breaker_probes
        ),
        streams_max=options.streams_max,
        weight=weight,
        priority=priority,
    )


def _models(options: OpenAIBackend, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, entry in enumerate(options.models):
        asked, separator, sent = entry.partition("=")
        if not asked or (separator and not sent):
            raise OptionError(f'{where}.models[{index}] = "{entry}" is refused: permitted is "NAME" or "ALIAS=MODEL"')
        found[asked] = sent or asked
    return found


# ---- addresses


def _origin(options: OpenAIBackend, where: str, name: str) -> tuple[Origin, str]:
    base = options.api_base
    # With a socket the base only gives the Host header and the path; its default names a server that is not there.
    if options.api_socket and base == API_BASE_DEFAULT:
        base = _SOCKET_BASE
    scheme, host, port, path = parse_base(base, f"{where}.api_base")
    if options.ca_file and not (os.path.isfile(options.ca_file) and os.access(options.ca_file, os.R_OK)):
        raise OptionError(f'{where}.ca_file = "{options.ca_file}" is no file that can be read')
    if "\0" in options.api_socket or len(os.fsencode(options.api_socket)) > SOCKET_PATH_BYTES_MAX:
        raise OptionError(
            f"{where}.api_socket is refused: permitted is a path of at most {SOCKET_PATH_BYTES_MAX} bytes"
        )
    origin = Origin(
        name=name,
        scheme=scheme,
        host=host,
        port=port,
        socket_path=options.api_socket,
        http2=options.http2_enabled,
        insecure_ssl=options.insecure_ssl,
        ca_file=options.ca_file,
        connect_timeout_ms=options.connect_timeout_ms,
        head_timeout_ms=options.head_timeout_ms,
        first_token_timeout_ms=options.first_token_timeout_ms,
        silence_timeout_ms=options.silence_timeout_ms,
        drain_timeout_ms=options.drain_timeout_s * 1000 if options.on_disconnect == "drain" else 0,
        idle_connections_max=options.idle_connections_max,
        idle_timeout_ms=options.idle_timeout_s * 1000,
    )
    return origin, path


def parse_base(base: str, where: str) -> tuple[Literal["http", "https"], str, int, str]:
    """Scheme, host, port, and the path without its last slash. /v1 is added where no part of it names a version."""

    def refused(fault: str) -> OptionError:
        return OptionError(f"{where} is refused: {fault}; write it as https://HOST[:PORT]/v1")

    if not _is_url_text(base):
        raise refused("it has a character that a URL does not have")
    try:
        parts = urlsplit(base)
        port = parts.port
    except ValueError as error:
        raise refused(str(error)) from error
    scheme, host = parts.scheme, parts.hostname
    if scheme not in {"http", "https"}:
        raise refused("it begins with neither https:// nor http://")
    if "@" in parts.netloc:
        raise refused("a user name or a password does not belong there")
    if not host or not _is_host(host):
        raise refused("it names no host")
    if port == 0:
        raise refused("0 is no port")
    if parts.query or parts.fragment or base[-1] in "?#":
        raise refused("it has a query or a fragment")
    segments = [segment for segment in parts.path.split("/") if segment]
    if segments[-2:] == ["chat", "completions"]:
        raise refused("/chat/completions is added by itself")
    if not any(_is_version(segment) for segment in segments):
        segments.append("v1")
    known: Literal["http", "https"] = "https" if scheme == "https" else "http"
    return known, host, port or (443 if known == "https" else 80), "/" + "/".join(segments)


def _is_local(origin: Origin) -> bool:
    if origin.socket_path or origin.host == "localhost" or origin.host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(origin.host).is_loopback
    except ValueError:
        return False


# ---- keys


def _key(options: OpenAIBackend, where: str) -> str:
    if options.api_key and options.api_key_file:
        raise OptionError(f"{where}.api_key (or OPENAI_API_KEY) and api_key_file are both set: keep one")
    if not options.api_key_file:
        return _checked_key(options.api_key, f"{where}.api_key")
    return _read_key(Path(options.api_key_file), f"{where}.api_key_file")


def _secrets(key: str, headers: dict[str, str]) -> tuple[str, ...]:
    """The longest first, as one may be a part of another. Also as JSON writes them in a string."""
    found = {key}
    for name, value in headers.items():
        if _names_secret(name):
            # "Bearer KEY" may be told without its first word, and a cookie without its name.
            parts = re.split(r"[\s;,]+", value)
            parts += [part.partition("=")[2].strip('"') for part in parts]
            found.update(part for part in (value, *parts) if len(part) >= SECRET_CHARACTERS_MIN)
    found -= {"", *(word for word in found if word.lower() in _SCHEMES)}
    found |= {msgspec.json.encode(secret).decode()[1:-1] for secret in found}
    return tuple(sorted(found, key=lambda secret: (-len(secret), secret)))


def _checked_key(key: str, where: str) -> str:
    if key and not _is_key(key):
        raise OptionError(f"{where} is refused: a key is printable ASCII without spaces")
    return key


def _read_key(path: Path, where: str) -> str:
    # O_NONBLOCK: a FIFO that nobody writes must not stop the start.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise OptionError(f'{where} = "{path}" cannot be read: {error.strerror}') from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OptionError(f'{where} = "{path}" is no file')
        # The group is left to the administrator: root:daemon 0640 is how such a file is often installed.
        if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            mode = stat.S_IMODE(found.st_mode)
            raise OptionError(f'{where} = "{path}" has mode {mode:04o}: others must not read it; use chmod 600 or 640')
        data = os.read(descriptor, KEY_FILE_BYTES_MAX)
    finally:
        os.close(descriptor)
    # Only ASCII can be a key, so what another encoding would make of it does not matter.
    key = data.decode("latin-1").strip()
    if not key or len(key) > KEY_CHARACTERS_MAX:
        raise OptionError(f'{where} = "{path}" holds no key: it must be 1 to {KEY_CHARACTERS_MAX} characters')
    return _checked_key(key, f'{where} = "{path}"')


# ---- what an operator should hear


def warnings(options: tuple[UpstreamOptions, ...], model: str) -> list[str]:
    """What is permitted and dangerous, or will surprise."""
    found: list[str] = []
    for one in options:
        origin = one.origin
        if origin.insecure_ssl and origin.scheme == "https":
            found.append(
                f"{one.where}: insecure_ssl is on: certificates are NOT verified, so anyone on the way to"
                f" {origin.authority} can read and change everything, the key included"
            )
        if one.key and origin.scheme == "http" and not _is_local(origin):
            found.append(f"{one.where}: the key goes to {origin.authority} unencrypted, by http")
    if all(one.models and model not in one.models for one in options):
        found.append(f'{SECTION}.model = "{model}" is served by no upstream: requests that name no model are refused')
    return found
