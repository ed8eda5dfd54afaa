"""Where bytes of an upstream lie that cannot be passed on yet: a small buffer of a stream's own, or a large one.

An event that ends in a later piece begins here. Most streams never hold one for longer than a turn. Beyond
`SMALL_BYTES_MAX` a stream needs a large one; where none is free it stops reading and asks again in a moment, so that
what follows always fits.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.linked import stack
from daemon.plane.memory import copy_bytes
from daemon.plane.messages import RAW_CREDIT_BYTES
from daemon.plane.relay_table import (
    ASSEMBLY_BYTES,
    LARGE_ASSEMBLY_BYTES,
    RECEIVE_BYTES,
    assembly_link_of,
    large_link_of,
    relay_of,
)

# What may still come when reading has stopped: a receive that is in flight, or a worker's credit.
SMALL_BYTES_MAX = ASSEMBLY_BYTES - max(RAW_CREDIT_BYTES, RECEIVE_BYTES)

_take_small, _give_small = stack("assembly_free", "next", assembly_link_of)
_take_large, _give_large = stack("large_free", "next", large_link_of)


@inlined
def assembly_address(plane: Any, relay: Any) -> int:
    """Where this relay's kept bytes begin; it has some buffer."""
    if relay.large >= 0:
        return int(plane.larges + relay.large * LARGE_ASSEMBLY_BYTES)
    assert relay.assembly >= 0
    return int(plane.assemblies + relay.assembly * ASSEMBLY_BYTES)


@compiled
def keep(plane: Any, slot: int, address: int, byte_count: int) -> None:
    """Append bytes. They fit: whoever reads stops in time."""
    relay = relay_of(plane, slot)
    if byte_count == 0:
        return
    if relay.large < 0 and relay.assembly < 0:
        relay.assembly = _take_small(plane)
        assert relay.assembly >= 0, "there is one for every slot"
    capacity = ASSEMBLY_BYTES if relay.large < 0 else LARGE_ASSEMBLY_BYTES
    assert relay.assembly_bytes + byte_count <= capacity
    copy_bytes(assembly_address(plane, relay) + relay.assembly_bytes, address, byte_count)
    relay.assembly_bytes += byte_count


@compiled
def drop_front(plane: Any, slot: int, byte_count: int) -> None:
    """The first bytes are passed on; what is left moves to the front, and an empty buffer is given back."""
    relay = relay_of(plane, slot)
    assert byte_count <= relay.assembly_bytes
    relay.assembly_bytes -= byte_count
    if relay.assembly_bytes == 0:
        give_assembly(plane, slot)
    elif byte_count > 0:
        address = assembly_address(plane, relay)
        copy_bytes(address, address + byte_count, relay.assembly_bytes)


@compiled
def promote(plane: Any, slot: int) -> bool:
    """Move to a large buffer. False when none is free."""
    relay = relay_of(plane, slot)
    if relay.large >= 0:
        return True
    large = _take_large(plane)
    if large < 0:
        return False
    source = assembly_address(plane, relay)
    relay.large = large
    copy_bytes(assembly_address(plane, relay), source, relay.assembly_bytes)
    _leave_small(plane, relay)
    return True


@inlined
def _leave_small(plane: Any, relay: Any) -> None:
    if relay.assembly >= 0:
        _give_small(plane, relay.assembly)
        relay.assembly = -1


@compiled
def give_assembly(plane: Any, slot: int) -> None:
    """Give back whatever buffer the stream holds; what is in it is gone."""
    relay = relay_of(plane, slot)
    _leave_small(plane, relay)
    if relay.large >= 0:
        _give_large(plane, relay.large)
        relay.large = -1
    relay.assembly_bytes = 0
