"""Commands: the layout the plane reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.control.channel.commands import adopting, open_tail, pack, pack_open, pack_push
from daemon.plane import messages as m
from daemon.plane.command_records import COMMAND_HEADER, COMMAND_LAYOUTS, HEADER_FIELDS, OpenCommand, PushCommand
from tests.daemon.control.channels import parse

SIZES = {field.name for field in HEADER_FIELDS}
PACKED = [kind for kind in COMMAND_LAYOUTS if kind != m.ADOPT]  # ADOPT is made of an OPEN


@pytest.mark.parametrize("kind", PACKED)
def test_every_field_lies_where_the_plane_reads_it(kind: int) -> None:
    layout = COMMAND_LAYOUTS[kind]
    zero: Any = layout.record(**dict.fromkeys(layout.record._fields, 0))
    assert len(pack(zero)) == layout.dtype.itemsize == m.COMMAND_BYTES
    for name in layout.record._fields:
        for value in (1, int(np.iinfo(layout.dtype[name]).max)):
            (command,) = parse(pack(zero._replace(**{name: value})))
            assert command.kind == kind
            set_fields = {key: found for key, found in command.fields.items() if found and key not in SIZES}
            assert set_fields == {name: value}


@pytest.mark.parametrize("kind", PACKED)
def test_every_kind_has_the_same_header(kind: int) -> None:
    layout = COMMAND_LAYOUTS[kind]
    record: Any = layout.record(**{name: number for number, name in enumerate(layout.record._fields, 1)})
    header = np.frombuffer(pack(record, b"payload")[: m.COMMAND_BYTES], COMMAND_HEADER)[0]
    assert (header["kind"], header["total_bytes"], header["payload_bytes"]) == (kind, m.padded(7), 7)
    if "slot" in layout.record._fields:
        assert (header["slot"], header["generation"]) == (1, 2)


@given(some.binary(max_size=m.PAYLOAD_BYTES_MAX))
def test_payloads_are_padded_to_whole_units(payload: bytes) -> None:
    data = pack(PushCommand(0, 0), payload)
    assert len(data) == m.padded(len(payload)) <= m.MESSAGE_BYTES_MAX
    assert parse(data)[0].payload == payload


@given(some.binary(max_size=200), some.integers(0, 2**32 - 1), some.integers(0, 2**31 - 1))
def test_the_quick_ways_pack_the_same(payload: bytes, slot: int, generation: int) -> None:
    common = OpenCommand(0, 0, script=3, message_count=5, linger_timeout_ms=7)
    opened = common._replace(
        slot=slot, generation=generation, flags=m.QUEUED, head_bytes=2, text_bytes=1, closing_bytes=3
    )
    assert pack_open(open_tail(common), slot, generation, m.QUEUED, payload, 2, 1, 3) == pack(opened, payload)
    push = PushCommand(slot, generation, head_bytes=2, flags=m.RAW, attempt=7)
    assert pack_push(slot, generation, payload, head_bytes=2, flags=m.RAW, attempt=7) == pack(push, payload)


@pytest.mark.parametrize(("client_fd", "cookie"), [(-1, 1), (2**31 - 1, -1), (7, 2**63 - 1)])
def test_an_adopt_is_an_open_with_a_socket(client_fd: int, cookie: int) -> None:
    opened = pack(OpenCommand(*range(1, len(OpenCommand._fields) + 1)), b"payload")
    (open_command,), (adopt,) = parse(opened), parse(adopting(opened, client_fd, cookie))
    assert adopt.payload == b"payload"
    assert adopt.fields == {**open_command.fields, "kind": m.ADOPT, "client_fd": client_fd, "cookie": cookie}


def test_what_is_too_large_is_not_packed() -> None:
    payload = bytes(m.PAYLOAD_BYTES_MAX + 1)
    with pytest.raises(AssertionError, match="do not fit"):
        pack(PushCommand(0, 0), payload)
    with pytest.raises(AssertionError, match="do not fit"):
        pack_push(0, 0, payload, head_bytes=0, flags=0, attempt=0)
    with pytest.raises(AssertionError, match="do not fit"):
        pack_open(open_tail(OpenCommand(0, 0)), 0, 0, 0, payload)
