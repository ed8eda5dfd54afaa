"""Validates the settings of [http], at start and for --check-config. Reads files; binds no port."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from daemon.control.http.api.keys import Keys, KeysError
from daemon.control.http.server.tls import load_certificates
from daemon.control.process.exit_codes import EXIT_CONFIGURATION, StartError

if TYPE_CHECKING:
    from config.http import Http

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


class Address(NamedTuple):
    """An address to listen on."""

    host: str
    port: int


def check(settings: Http) -> None:
    """Check everything except whether the address is free. Raises StartError."""
    for origin in settings.cors_origins:
        _check_origin(origin)
    keys = read_keys(settings)
    load_certificates(settings)
    if settings.listen:
        check_places(settings, resolve(settings), has_keys=keys is not None)


def parse_address(listen: str) -> Address:
    """`HOST:PORT` or `[IPV6]:PORT`. Raises StartError."""
    match = _ADDRESS.fullmatch(listen)
    if match is None or int(match["port"]) > 65_535:
        raise _wrong(f'http.listen = "{listen}" is not an address and port: write 127.0.0.1:8000, [::1]:8000 or a name')
    return Address(match["v6"] or match["host"], int(match["port"]))


def resolve(settings: Http) -> list[str]:
    """The addresses to listen on. Blocks while a name is resolved. Raises StartError."""
    address = parse_address(settings.listen)
    try:
        infos = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _wrong(f'http.listen = "{settings.listen}": {error.strerror}') from error
    return list(dict.fromkeys(str(item[4][0]) for item in infos))


def check_places(settings: Http, places: list[str], *, has_keys: bool) -> None:
    """Refuse to serve anonymous clients on a reachable address unless that is allowed. Raises StartError."""
    loopback = all(ipaddress.ip_address(place.partition("%")[0]).is_loopback for place in places)
    if not (has_keys or settings.allow_anonymous or loopback):
        raise _wrong(
            f'http.listen = "{settings.listen}" can be reached from other hosts, and no key would be required: '
            "set http.api_keys_file, or http.allow_anonymous = true"
        )


def read_keys(settings: Http) -> Keys | None:
    """The keys, or None where no file is configured. Raises StartError."""
    if not settings.api_keys_file:
        return None
    try:
        return Keys(settings.api_keys_file)
    except KeysError as error:
        raise _wrong(f"http.api_keys_file: {error}") from error


def _check_origin(origin: str) -> None:
    """An origin must be in the form that browsers send. Raises StartError."""
    if origin in {"*", "null"}:
        return
    parts = urlsplit(origin)
    if origin != f"{parts.scheme}://{parts.netloc}" or not parts.scheme or not parts.netloc or origin != origin.lower():
        raise _wrong(
            f'http.cors_origins: "{origin}" is not an origin as browsers send it: write scheme, host and port in lower '
            'case and nothing after them, as "https://example.com", or "*" for all'
        )


def _wrong(message: str) -> StartError:
    return StartError(message, EXIT_CONFIGURATION)
