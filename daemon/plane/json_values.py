"""JSON values of which only the end matters: each is checked in full, and skipped.

A cursor is an offset from `address`; functions give the one behind what they skip, or -1 where it is not valid JSON.
Memory is only read in [address, address + length). Data-plane thread, or tests. Source: RFC 8259.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.bytes_search import name_words, string_bytes, word4_at
from daemon.plane.records import load_byte

DEPTH_MAX = 64  # objects and arrays inside one another; as many bits as an integer has

_NULL_WORD = name_words(b"null")[1]
_TRUE_WORD = name_words(b"true")[1]
_ALSE_WORD = name_words(b"alse")[1]


@compiled
def skip_value(walk: Any, address: int, cursor: int, length: int, depth: int) -> int:
    """Where the value that begins here ends, or -1. `depth` containers are open around it."""
    if cursor >= length:
        return -1
    byte = load_byte(address + cursor)
    if byte == 123 or byte == 91:
        return _skip_container(walk, address, cursor, length, depth)
    return _skip_scalar(address, cursor, length)


@compiled
def _skip_container(walk: Any, address: int, cursor: int, length: int, depth: int) -> int:
    """An object or an array with all that is in it. A bit per open container says which of the two it is."""
    outside = depth
    kinds = 0
    while cursor < length:
        # A value begins at the cursor.
        byte = load_byte(address + cursor)
        if byte == 123 or byte == 91:
            depth += 1
            if depth > DEPTH_MAX:
                return -1
            is_object = 1 if byte == 123 else 0
            walk.object_count += is_object
            kinds = (kinds << 1) | is_object
            cursor = skip_space(address, cursor + 1, length)
            is_empty = cursor < length and load_byte(address + cursor) == byte + 2
            if not is_empty:
                cursor = _key(address, cursor, length) if is_object else cursor
                if cursor < 0:
                    return -1
                continue
        else:
            cursor = _skip_scalar(address, cursor, length)
            if cursor < 0:
                return -1
        # A value has ended, or an empty container is about to.
        cursor, kinds, depth = _close(address, cursor, length, kinds, depth, outside)
        if cursor < 0 or depth == outside:
            return cursor
    return -1


@inlined
def _close(address: int, cursor: int, length: int, kinds: int, depth: int, outside: int) -> tuple[int, int, int]:
    """Close what ends here, and read on to the next value. The cursor (-1: invalid), and what is open then."""
    while depth > outside:
        cursor = skip_space(address, cursor, length)
        if cursor >= length:
            return -1, kinds, depth
        byte = load_byte(address + cursor)
        is_object = kinds & 1
        if byte == (125 if is_object else 93):
            depth -= 1
            kinds >>= 1
            cursor += 1
        elif byte == 44:
            cursor = skip_space(address, cursor + 1, length)
            return _key(address, cursor, length) if is_object else cursor, kinds, depth
        else:
            return -1, kinds, depth
    return cursor, kinds, depth


@compiled
def _key(address: int, cursor: int, length: int) -> int:
    """Skip a key and its colon: where the value begins, or -1."""
    if cursor >= length or load_byte(address + cursor) != 34:
        return -1
    after, _is_escaped = skip_string(address, cursor + 1, length)
    return behind_colon(address, after, length) if after >= 0 else -1


@inlined
def behind_colon(address: int, cursor: int, length: int) -> int:
    """From behind a key to where its value begins, or -1."""
    cursor = skip_space(address, cursor, length)
    if cursor >= length or load_byte(address + cursor) != 58:
        return -1
    return skip_space(address, cursor + 1, length)


@compiled
def _skip_scalar(address: int, cursor: int, length: int) -> int:
    byte = load_byte(address + cursor)
    if byte == 34:
        after, _is_escaped = skip_string(address, cursor + 1, length)
        return after
    if byte == 45 or 48 <= byte <= 57:
        return _skip_number(address, cursor, length)
    if cursor + 4 > length:
        return -1
    word = word4_at(address + cursor)
    if word in (_NULL_WORD, _TRUE_WORD):
        return cursor + 4
    is_false = byte == 102 and cursor + 5 <= length and word4_at(address + cursor + 1) == _ALSE_WORD
    return cursor + 5 if is_false else -1


@compiled
def _skip_number(address: int, cursor: int, length: int) -> int:
    """A number begins here, with its first digit or a minus (RFC 8259, 6)."""
    if load_byte(address + cursor) == 45:
        cursor += 1
    after = _skip_digits(address, cursor, length)
    if after == cursor or (after > cursor + 1 and load_byte(address + cursor) == 48):
        return -1
    if after < length and load_byte(address + after) == 46:
        cursor = after + 1
        after = _skip_digits(address, cursor, length)
        if after == cursor:
            return -1
    if after < length and load_byte(address + after) | 32 == 101:
        cursor = after + 1
        if cursor < length and (load_byte(address + cursor) == 43 or load_byte(address + cursor) == 45):
            cursor += 1
        after = _skip_digits(address, cursor, length)
        if after == cursor:
            return -1
    return after


@inlined
def _skip_digits(address: int, cursor: int, length: int) -> int:
    while cursor < length and 48 <= load_byte(address + cursor) <= 57:
        cursor += 1
    return cursor


@inlined
def skip_space(address: int, cursor: int, length: int) -> int:
    while cursor < length:
        byte = load_byte(address + cursor)
        if byte > 32 or not (byte == 32 or byte == 10 or byte == 13 or byte == 9):
            break
        cursor += 1
    return cursor


@compiled
def skip_string(address: int, cursor: int, length: int) -> tuple[int, int]:
    """The string whose first byte (or closing quote) is here: where it ends, or -1; and 1 when it has escapes."""
    is_escaped = 0
    while True:
        cursor += string_bytes(address + cursor, length - cursor)
        if cursor >= length:
            return -1, 0
        byte = load_byte(address + cursor)
        if byte == 34:
            return cursor + 1, is_escaped
        if byte != 92:
            return -1, 0
        is_escaped = 1
        cursor = _skip_escape(address, cursor, length)
        if cursor < 0:
            return -1, 0


@inlined
def _skip_escape(address: int, cursor: int, length: int) -> int:
    """A backslash and what belongs to it (RFC 8259, 7), or -1."""
    if cursor + 2 > length:
        return -1
    byte = load_byte(address + cursor + 1)
    if byte == 117:
        return cursor + 6 if cursor + 6 <= length and four_digits(address + cursor + 2) >= 0 else -1
    return cursor + 2 if is_short_escape(byte) else -1


@inlined
def is_short_escape(byte: int) -> bool:
    """Whether a backslash may stand before this byte alone."""
    return byte in (34, 47, 92, 98, 102, 110, 114, 116)


@compiled
def four_digits(address: int) -> int:
    """The value of four hexadecimal digits, or -1."""
    value = 0
    for offset in range(4):
        byte = load_byte(address + offset)
        lower = byte | 32
        if 48 <= byte <= 57:
            value = value * 16 + byte - 48
        elif 97 <= lower <= 102:
            value = value * 16 + lower - 87
        else:
            return -1
    return value
