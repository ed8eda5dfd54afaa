"""What the heads of requests and of responses are made of: names, values, lists and numbers (RFC 9110, 5).

Data-plane thread, or tests. Spans are [address + start, address + end); nothing outside of them is read.
"""

from __future__ import annotations

from config.compilation import compiled, inlined
from daemon.plane.bytes_search import Words, control_bytes, folded_words
from daemon.plane.records import load_byte

_LENGTH_MAX = (1 << 63) - 1
TAB, LF, CR, SPACE, COMMA, COLON = tuple(b"\t\n\r ,:")


@inlined
def text_end(address: int, start: int, end: int) -> int:
    """Where the first control character stands that no field's value may hold, so any but a tab; or `end`."""
    start += control_bytes(address + start, end - start)
    while start < end and load_byte(address + start) == TAB:
        start += 1
        start += control_bytes(address + start, end - start)
    return start


@inlined
def is_control(byte: int) -> bool:
    """Whether a byte may not stand in a field's value (RFC 9110, 5.5)."""
    return (byte < SPACE and byte != TAB) or byte == 127


@inlined
def is_token_byte(byte: int) -> bool:
    """Whether a byte may stand in a token (RFC 9110, 5.6.2)."""
    if 97 <= (byte | 32) <= 122 or 48 <= byte <= 57:
        return True
    return byte in (33, 35, 36, 37, 38, 39, 42, 43, 45, 46, 94, 95, 96, 124, 126)


@inlined
def is_blank(byte: int) -> bool:
    return byte in (SPACE, TAB)


@inlined
def skip_blanks(address: int, start: int, end: int) -> int:
    while start < end and is_blank(load_byte(address + start)):
        start += 1
    return start


@inlined
def trim_blanks(address: int, start: int, end: int) -> int:
    """Where these bytes end without the blanks behind them."""
    while end > start and is_blank(load_byte(address + end - 1)):
        end -= 1
    return end


@inlined
def element_bytes(address: int, start: int, end: int, separator: int) -> int:
    """How many bytes stand before the separator or the end, without blanks in front of it."""
    after = start
    while after < end and load_byte(address + after) != separator:
        after += 1
    return trim_blanks(address, start, after) - start


@compiled
def list_has(address: int, start: int, end: int, name: Words) -> bool:
    """Whether a list between commas holds this token, in any case (RFC 9110, 5.6.1)."""
    while start < end:
        size = element_bytes(address, start, end, COMMA)
        if folded_words(address + start, size) == name:
            return True
        start = skip_blanks(address, start + size, end)
        start = skip_blanks(address, start + 1, end)
    return False


@inlined
def decimal_value(address: int, length: int) -> int:
    """A row of digits, or -1 where it is none or does not fit."""
    if length == 0:
        return -1
    value = 0
    for offset in range(length):
        digit = load_byte(address + offset) - 48
        if digit < 0 or digit > 9 or value > (_LENGTH_MAX - digit) // 10:
            return -1
        value = value * 10 + digit
    return value
