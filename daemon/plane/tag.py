"""The 64-bit tag every submission carries: which operation, of which slot, in which generation.

bits 0-7 operation kind, bits 8-31 slot (or channel), bits 32-63 generation. A completion whose generation is not the
slot's present one is stale and is dropped, so that a late completion can never touch a reused slot.
"""

from __future__ import annotations

from config.compilation import inlined

# Operations of a slot. At most one of each kind is in flight per slot; bit 1 << kind of `in_flight` says so.
RECEIVE_HANDOFF = 0
POLL_PEER = 1
POLL_CLIENT = 2
SEND = 3
POLL_WRITABLE = 4
RECEIVE = 5
POLL_READABLE = 6
SHUTDOWN = 7
CLOSE_CLIENT = 8
CLOSE_PEER = 9
# Cancelling kind k is kind CANCEL + k; only kinds below 8 are ever cancelled.
CANCEL = 16

# Operations of no slot.
ACCEPT = 32
CANCEL_ACCEPT = 33
READ_COMMANDS = 34
POLL_COMMANDS = 35
WRITE_EVENTS = 36
POLL_EVENTS = 37
CLOSE_STRAY = 38

# Operations of an upstream's connection: the tag's slot is the connection's number. Bit 1 << (kind - CONNECTION_SOCKET)
# of the connection's `in_flight` says that one is in flight; cancelling kind k is kind k + CONNECTION_CANCEL.
CONNECTION_SOCKET = 64
CONNECTION_CONNECT = 65
CONNECTION_SEND = 66
CONNECTION_RECEIVE = 67
CONNECTION_WRITABLE = 68
CONNECTION_CLOSE = 69
CONNECTION_CANCEL = 16

SLOT_BITS = 24
SLOT_NONE = (1 << SLOT_BITS) - 1


@inlined
def pack(kind: int, slot: int, generation: int) -> int:
    """The tag of an operation; `generation` is taken modulo 2**31, so that a tag is never negative."""
    return kind | (slot << 8) | ((generation & 0x7FFFFFFF) << 32)


@inlined
def kind_of(tag: int) -> int:
    return tag & 0xFF


@inlined
def slot_of(tag: int) -> int:
    return (tag >> 8) & SLOT_NONE


@inlined
def generation_of(tag: int) -> int:
    return (tag >> 32) & 0x7FFFFFFF
