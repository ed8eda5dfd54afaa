"""The inside of a JSON string, written again in the one form we send.

Data-plane thread, or tests. Sources: RFC 8259, 7; Unicode 17, table 3-7.
"""

from __future__ import annotations

from config.compilation import compiled, inlined
from daemon.plane.bytes_search import text_bytes
from daemon.plane.json_values import four_digits, is_short_escape
from daemon.plane.memory import copy_bytes
from daemon.plane.records import load_byte, store_byte


@compiled
def rewrite_string(destination: int, source: int, length: int) -> int:
    """Write the inside of a JSON string again in the one form we send; bytes written (at most `length`), or -1.

    Text is raw UTF-8; quote, backslash and control characters are escaped, with a letter where there is one. An
    unpaired surrogate becomes U+FFFD. What is not UTF-8, or no inside of a string, is invalid. `destination` may be
    `source`, or lie before it in the same memory.
    """
    read = 0
    written = 0
    while read < length:
        plain = _plain_bytes(source + read, length - read)
        if plain < 0:
            return -1
        if plain > 0:
            if destination + written != source + read:
                copy_bytes(destination + written, source + read, plain)
            read += plain
            written += plain
        if read < length:
            escape_bytes, character_bytes = _rewrite_escape(destination + written, source + read, length - read)
            if escape_bytes == 0:
                return -1
            read += escape_bytes
            written += character_bytes
    return written


@inlined
def _plain_bytes(address: int, length: int) -> int:
    """How many bytes stand before the first backslash, or -1 when they are not what a string may hold."""
    offset = text_bytes(address, length)
    while offset < length:
        byte = load_byte(address + offset)
        if byte == 92:
            break
        size = _sequence_bytes(address + offset, length - offset)
        if size == 0:
            return -1
        offset += size
        # Text that is not ASCII seldom is so for one character alone.
        if offset < length and load_byte(address + offset) < 128:
            offset += text_bytes(address + offset, length - offset)
    return offset


@compiled
def _sequence_bytes(address: int, length: int) -> int:
    """Bytes of the UTF-8 sequence of several bytes that begins here; 0: none does (Unicode 17, table 3-7)."""
    first = load_byte(address)
    low, high = 128, 191  # of the second byte: neither a longer form than needed, nor a surrogate, nor too great
    if 194 <= first <= 223:
        size = 2
    elif 224 <= first <= 239:
        size = 3
        if first == 224:
            low = 160
        elif first == 237:
            high = 159
    elif 240 <= first <= 244:
        size = 4
        if first == 240:
            low = 144
        elif first == 244:
            high = 143
    else:
        return 0
    if size > length:
        return 0
    second = load_byte(address + 1)
    if second < low or second > high:
        return 0
    for offset in range(2, size):
        if load_byte(address + offset) & 192 != 128:
            return 0
    return size


@compiled
def _rewrite_escape(destination: int, source: int, length: int) -> tuple[int, int]:
    """One escape, or a pair of them that is one character: bytes read (0: invalid), bytes written."""
    if length < 2:
        return 0, 0
    kind = load_byte(source + 1)
    if kind == 47:
        store_byte(destination, kind)
        return 2, 1
    if is_short_escape(kind):
        store_byte(destination, 92)
        store_byte(destination + 1, kind)
        return 2, 2
    if kind != 117 or length < 6:
        return 0, 0
    character = four_digits(source + 2)
    if character < 0:
        return 0, 0
    read = 6
    if character & 0xF800 == 0xD800:
        second = -1
        if character < 0xDC00 and length >= 12 and load_byte(source + 6) == 92 and load_byte(source + 7) == 117:
            second = four_digits(source + 8)
        if second & 0xFC00 == 0xDC00 and second > 0:
            character = 0x10000 + ((character & 0x3FF) << 10) + (second & 0x3FF)
            read = 12
        else:
            character = 0xFFFD
    return read, _write_character(destination, character)


@inlined
def _write_character(address: int, character: int) -> int:
    """Write one character as a string of ours holds it; bytes written."""
    if character < 32:
        return _write_control(address, character)
    if character == 34 or character == 92:
        store_byte(address, 92)
        store_byte(address + 1, character)
        return 2
    if character < 0x80:
        store_byte(address, character)
        return 1
    if character < 0x800:
        store_byte(address, 0xC0 | (character >> 6))
        store_byte(address + 1, 0x80 | (character & 63))
        return 2
    if character < 0x10000:
        store_byte(address, 0xE0 | (character >> 12))
        store_byte(address + 1, 0x80 | ((character >> 6) & 63))
        store_byte(address + 2, 0x80 | (character & 63))
        return 3
    store_byte(address, 0xF0 | (character >> 18))
    store_byte(address + 1, 0x80 | ((character >> 12) & 63))
    store_byte(address + 2, 0x80 | ((character >> 6) & 63))
    store_byte(address + 3, 0x80 | (character & 63))
    return 4


@inlined
def _write_control(address: int, character: int) -> int:
    """A control character: with a letter where JSON has one, else with four digits."""
    letter = 0
    if 8 <= character <= 10:
        letter = 98 if character == 8 else 116 if character == 9 else 110
    elif 12 <= character <= 13:
        letter = 102 if character == 12 else 114
    store_byte(address, 92)
    if letter > 0:
        store_byte(address + 1, letter)
        return 2
    low = character & 15
    store_byte(address + 1, 117)
    store_byte(address + 2, 48)
    store_byte(address + 3, 48)
    store_byte(address + 4, 48 + (character >> 4))
    store_byte(address + 5, low + 48 if low < 10 else low + 87)
    return 6
