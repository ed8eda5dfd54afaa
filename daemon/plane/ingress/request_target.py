"""What a request is for: the forms of a target (RFC 9112, 3.2), and the names and addresses of hosts (RFC 3986, 3.2).

Data-plane thread, or tests. Spans are [address + start, address + end); nothing outside of them is read.
"""

from __future__ import annotations

from config.compilation import compiled, inlined
from daemon.plane.body import hexadecimal
from daemon.plane.bytes_search import folded_words, name_words
from daemon.plane.http_fields import COLON, decimal_value
from daemon.plane.records import load_byte

# Forms of targets
ORIGIN_FORM = 1  # a path
ABSOLUTE_FORM = 2  # a URL
ASTERISK_FORM = 3

_HTTP = name_words(b"http://")
_HTTPS = name_words(b"https://")
_SLASH, _QUESTION, _HASH, _ASTERISK = tuple(b"/?#*")
_PORT_DIGITS_MAX = 5


@compiled
def form_of_target(address: int, start: int, end: int) -> int:
    """The target's form, or 0: it is of none, or holds `#` or a byte that is not visible ASCII."""
    for offset in range(start, end):
        byte = load_byte(address + offset)
        if byte <= 32 or byte >= 127 or byte == _HASH:
            return 0
    first = load_byte(address + start)
    if first == _SLASH:
        return ORIGIN_FORM
    if first == _ASTERISK and end == start + 1:
        return ASTERISK_FORM
    return ABSOLUTE_FORM if end - start > _scheme_bytes(address, start, end) > 0 else 0


@inlined
def _scheme_bytes(address: int, start: int, end: int) -> int:
    """Bytes of `http://` or `https://`, with which a URL begins; 0 where it does not."""
    for name in (_HTTP, _HTTPS):
        if end - start >= name[0] and folded_words(address + start, name[0]) == name:
            return name[0]
    return 0


@inlined
def authority_start(address: int, start: int, end: int) -> int:
    """Where in a URL the host begins."""
    return start + _scheme_bytes(address, start, end)


@inlined
def authority_end(address: int, start: int, end: int) -> int:
    """Where in a URL the host ends that begins at `start`."""
    while start < end and load_byte(address + start) not in (_SLASH, _QUESTION):
        start += 1
    return start


@compiled
def is_authority(address: int, start: int, end: int) -> bool:
    """Whether these bytes are a host, with a port or without.

    A host is an address in brackets, or a name of letters, digits, `-`, `.`, `_`, `~` and `%`. RFC 3986 also allows
    user names, which HTTP forbids (RFC 9110, 4.2.4), and `!$&'()*+,;=`, which no name of a host has.
    """
    if start < end and load_byte(address + start) == 91:
        start += 1
        host_end = start
        while host_end < end and _is_address_byte(load_byte(address + host_end)):
            host_end += 1
        if host_end < start + 2 or host_end >= end or load_byte(address + host_end) != 93:
            return False
        return _is_port(address, host_end + 1, end)
    host_end = start
    while host_end < end and _is_name_byte(load_byte(address + host_end)):
        host_end += 1
    return host_end > start and _is_port(address, host_end, end)


@inlined
def _is_address_byte(byte: int) -> bool:
    """Of an IPv6 address."""
    return hexadecimal(byte) >= 0 or byte in (46, COLON)


@inlined
def _is_name_byte(byte: int) -> bool:
    return 97 <= (byte | 32) <= 122 or 48 <= byte <= 57 or byte in (37, 45, 46, 95, 126)


@inlined
def _is_port(address: int, start: int, end: int) -> bool:
    """Nothing, or a colon and at most five digits."""
    if start == end:
        return True
    digits = end - start - 1
    if load_byte(address + start) != COLON or digits > _PORT_DIGITS_MAX:
        return False
    return digits == 0 or decimal_value(address + start + 1, digits) >= 0
