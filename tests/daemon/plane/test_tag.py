from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.plane import tag

pytestmark = pytest.mark.plane


@given(some.integers(0, 255), some.integers(0, tag.SLOT_NONE), some.integers(0, 2**31 - 1))
def test_a_tag_gives_back_what_was_packed(kind: int, slot: int, generation: int) -> None:
    packed = tag.pack(kind, slot, generation)
    assert 0 <= packed < 2**63
    assert (tag.kind_of(packed), tag.slot_of(packed), tag.generation_of(packed)) == (kind, slot, generation)


def test_kinds_that_are_cancelled_leave_room_for_their_cancels() -> None:
    slot_kinds = (
        tag.RECEIVE_HANDOFF,
        tag.POLL_PEER,
        tag.POLL_CLIENT,
        tag.SEND,
        tag.POLL_WRITABLE,
        tag.RECEIVE,
        tag.POLL_READABLE,
        tag.SHUTDOWN,
        tag.CLOSE_CLIENT,
        tag.CLOSE_PEER,
    )
    cancels = [tag.CANCEL + kind for kind in slot_kinds if kind < tag.SHUTDOWN]
    assert len({*slot_kinds, *cancels}) == len(slot_kinds) + len(cancels)
    assert max(cancels) < min(31, tag.ACCEPT)  # bits of a signed 32-bit word
