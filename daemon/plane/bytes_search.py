"""Looking for bytes, and comparing short names, in raw memory. No read is outside what the caller names.

Every search has a Python body, which is its specification and what runs when the plane is interpreted, and a compiled
twin: libc's memchr for one byte, and steps of sixteen bytes where several bytes end the search. Data-plane thread, or
tests.
"""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

from config.compilation import foreign, inlined, intrinsic, ir, overload, types
from daemon.plane.records import load_byte, record, record_accessor

_memchr = foreign("memchr", types.intp, types.intp, types.intc, types.intp)
_LINE_END = re.compile(rb"[\n\r]")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_STRING_STOP = re.compile(rb'["\\\x00-\x1f]')
_TEXT_STOP = re.compile(rb'["\\\x00-\x1f\x80-\xff]')

NAME_BYTES_MAX = 17  # of names that `folded_words` and `plain_words` tell apart


def find_byte(address: int, length: int, byte: int) -> int:
    """Where `byte` first stands among `length` bytes, or -1."""
    return ctypes.string_at(int(address), int(length)).find(byte)


@overload(find_byte)
def _find_byte(address: Any, length: Any, byte: Any) -> Any:
    def find(address: Any, length: Any, byte: Any) -> Any:
        found = _memchr(address, byte, length)
        return found - address if found != 0 else -1

    return find


# ---- sixteen bytes at once

_STEP = 16


def _stops(width: int, byte_values: tuple[int, ...], below: int, is_signed: bool) -> Any:
    """A function from an address to `width` bits: which bytes there are one of these values, or less than `below`.

    Compared as signed numbers, bytes from 0x80 on are less than any ASCII character.
    """

    @intrinsic
    def stops(_context: Any, address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), width)
            loaded = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()), align=1)
            compare = builder.icmp_signed if is_signed else builder.icmp_unsigned
            found = compare("<", loaded, ir.Constant(vector, [below] * width))
            for value in byte_values:
                found = builder.or_(found, builder.icmp_unsigned("==", loaded, ir.Constant(vector, [value] * width)))
            return builder.zext(builder.bitcast(found, ir.IntType(width)), ir.IntType(64))

        return types.int64(types.intp), generate

    return stops


@intrinsic
def _lowest_bit(_context: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


def _in_steps(byte_values: tuple[int, ...], below: int, *, is_signed: bool = False) -> Any:
    """The compiled form of a search that ends at a byte of these values, or less than `below`."""
    stops = _stops(_STEP, byte_values, below, is_signed)
    stops_at = _stops(1, byte_values, below, is_signed)

    def specialise(address: Any, length: Any) -> Any:
        def search(address: Any, length: Any) -> Any:
            offset = 0
            while offset + _STEP <= length:
                found = stops(address + offset)
                if found != 0:
                    return offset + _lowest_bit(found)
                offset += _STEP
            while offset < length and stops_at(address + offset) == 0:
                offset += 1
            return offset

        return search

    return specialise


def _first(pattern: re.Pattern[bytes], address: int, length: int) -> int:
    found = pattern.search(ctypes.string_at(int(address), int(length)))
    return found.start() if found else int(length)


def line_bytes(address: int, length: int) -> int:
    """How many bytes stand before the first LF or CR; `length` where there is none."""
    return _first(_LINE_END, address, length)


def control_bytes(address: int, length: int) -> int:
    """How many bytes stand before the first control character, tab and DEL included; `length` where there is none."""
    return _first(_CONTROL, address, length)


def string_bytes(address: int, length: int) -> int:
    """How many bytes stand before the first quote, backslash or control character, all of which JSON treats apart."""
    return _first(_STRING_STOP, address, length)


def text_bytes(address: int, length: int) -> int:
    """As `string_bytes`, but only ASCII: how many bytes stand before what must be looked at one by one."""
    return _first(_TEXT_STOP, address, length)


overload(line_bytes)(_in_steps((10, 13), 0))
overload(control_bytes)(_in_steps((127,), 32))
overload(string_bytes)(_in_steps((34, 92), 32))
overload(text_bytes)(_in_steps((34, 92), 32, is_signed=True))


# ---- names: compared as numbers, because compiled code has no bytes to compare them with

_WORD4 = record_accessor(record("value:i4", 4))
_WORD8 = record_accessor(record("value:i8", 8))
Words = tuple[int, int, int, int]  # length; the first eight bytes; the last eight; the ninth
NO_NAME: Words = (-1, 0, 0, 0)


def name_words(name: bytes) -> Words:
    """An ASCII name of at most NAME_BYTES_MAX bytes as numbers. Not for compiled code, but for its constants."""
    assert name.isascii()
    assert 0 < len(name) <= NAME_BYTES_MAX
    assert sys.byteorder == "little"
    first, last = int.from_bytes(name[:8], "little"), int.from_bytes(name[-8:], "little")
    return (len(name), first, last if len(name) > 8 else 0, name[8] if len(name) > 8 else 0)


@inlined
def word4_at(address: int) -> int:
    """Four bytes, little-endian, unsigned, but of a signed type.

    Numba unites int64 and uint64 to a float, in which names that differ in their first byte are equal.
    """
    return int(_WORD4(address).value) & 0xFFFFFFFF


@inlined
def word8_at(address: int) -> int:
    """Eight bytes, little-endian; negative where the last is not ASCII."""
    return int(_WORD8(address).value)


@inlined
def add_to_words(words: Words, byte: int) -> Words:
    """Append an ASCII byte to a name that is being read; a byte that is none, or one too many, gives NO_NAME."""
    length, first, last, ninth = words
    if length < 0 or length >= NAME_BYTES_MAX or byte >= 128:
        return NO_NAME
    if length < 8:
        return (length + 1, first | (byte << (8 * length)), 0, 0)
    if length == 8:
        last, ninth = first, byte
    return (length + 1, first, (last >> 8) | (byte << 56), ninth)


@inlined
def plain_words(address: int, length: int) -> Words:
    """A name as `name_words` gives it, of 4 to NAME_BYTES_MAX bytes, by overlapping loads; all others are NO_NAME."""
    if length < 4 or length > NAME_BYTES_MAX:
        return NO_NAME
    if length < 8:
        return (length, word4_at(address) | (word4_at(address + length - 4) << (8 * (length - 4))), 0, 0)
    if length == 8:
        return (length, word8_at(address), 0, 0)
    return (length, word8_at(address), word8_at(address + length - 8), load_byte(address + 8))


@inlined
def _capitals(lanes: int) -> int:
    """1 in each lane of 16 bits that holds a capital letter. The sums have bit 7 from `A` on, and beyond `Z`."""
    return (((lanes + 0x003F003F003F003F) & ~(lanes + 0x0025002500250025)) >> 7) & 0x0001000100010001


@inlined
def _folded(word: int) -> int:
    """Eight bytes, their letters in lower case: every second byte in a lane, so that no sum overflows.

    LLVM takes the sum of two positive numbers for positive.
    """
    even, odd = word & 0x007F007F007F007F, (word >> 8) & 0x007F007F007F007F
    return word | (_capitals(even) << 5) | (_capitals(odd) << 13)


@inlined
def folded_words(address: int, length: int) -> Words:
    """As `plain_words`, the name in lower case, whatever the case here. For tokens of HTTP (RFC 9110, 5.6.2)."""
    length, first, last, ninth = plain_words(address, length)
    return (length, _folded(first), _folded(last), _folded(ninth))
