"""Commands: the layout the plane reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.control.channel.commands import pack, pack_with_tail, tail
from daemon.plane import messages as m
from tests.daemon.control.channels import parse

if TYPE_CHECKING:
    pass

SIZES = ("kind", "total_bytes", "payload_bytes")


@pytest.mark.parametrize("name", [name for name in m.COMMAND.names if name not in SIZES])
def test_every_field_stands_where_the_plane_reads_it(name: str) -> None:
    largest = int(np.iinfo(m.COMMAND[name]).max)
    for value in (1, largest):
        (command,) = parse(pack(kind=m.OPEN, **{name: value}))
        set_fields = {key: found for key, found in command.fields.items() if found and key not in SIZES}
        assert set_fields == {name: value}


def test_descriptors_may_be_negative() -> None:
    assert parse(pack(kind=m.ADOPT, client_fd=-1))[0].client_fd == -1


@given(some.binary(max_size=m.PAYLOAD_BYTES_MAX))
def test_payloads_are_padded_to_whole_units(payload: bytes) -> None:
    data = pack(payload, kind=m.PUSH)
    assert len(data) == m.padded(len(payload)) <= m.MESSAGE_BYTES_MAX
    assert parse(data)[0].payload == payload


@given(some.binary(max_size=200), some.integers(0, 2**32 - 1), some.integers(0, 2**31 - 1))
def test_the_quick_way_packs_the_same(payload: bytes, slot: int, generation: int) -> None:
    common = tail(script=3, message_count=5, linger_timeout_ms=7)
    quick = pack_with_tail(common, m.OPEN, m.QUEUED, slot, generation, payload, 2, 1, 3)
    named = pack(
        payload, kind=m.OPEN, flags=m.QUEUED, slot=slot, generation=generation, head_bytes=2, text_bytes=1,
        closing_bytes=3, script=3, message_count=5, linger_timeout_ms=7,
    )  # fmt: skip
    assert quick == named


def test_what_is_wrong_is_not_packed() -> None:
    with pytest.raises(AssertionError, match="no such fields"):
        pack(kind=m.OPEN, colour=1)
    with pytest.raises(AssertionError, match="do not fit"):
        pack(bytes(m.PAYLOAD_BYTES_MAX + 1), kind=m.PUSH)
    with pytest.raises(AssertionError, match="do not fit"):
        pack_with_tail(tail(), m.PUSH, 0, 0, 0, bytes(m.PAYLOAD_BYTES_MAX + 1), 0)
