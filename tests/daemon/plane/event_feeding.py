"""An event stream given to the scan in pieces, as the plane gives it: only `resume` is kept between two calls."""

from __future__ import annotations

from daemon.plane.sse import SCAN, join_data, scan_event, scan_of, skip_bom
from tests.daemon.plane.guarded import Fields, Guarded
from tests.daemon.plane.parser_reference import Event
from tests.daemon.plane.small import bytes_at

MEMORY = Guarded(1 << 16)
DESTINATION = Guarded(1 << 16)
SCANNED = Fields(SCAN, scan_of)


def scan(data: bytes, resume: int, is_last: bool) -> bool:
    """One call, with nothing readable around the data and nothing of an earlier call in the record."""
    SCANNED.spoil()
    SCANNED["resume"] = resume
    found = bool(scan_event(SCANNED.record, MEMORY.at_end(data), len(data), is_last))
    first = SCANNED.array.tobytes()
    SCANNED.spoil()
    SCANNED["resume"] = resume
    assert bool(scan_event(SCANNED.record, MEMORY.at_start(data), len(data), is_last)) == found
    undecided = 1 if data.endswith(b"\r") and not is_last else 0
    assert SCANNED["resume"] == (0 if found else len(data) - undecided)
    assert not found or SCANNED.array.tobytes() == first
    return found


def event_of(data: bytes) -> Event:
    """The event that the last scan has found at the beginning of the data."""
    end = SCANNED["end"]
    block = data[:end]
    address = MEMORY.at_end(block)
    destination = DESTINATION.at_end(bytes(end))
    joined = bytes_at(destination, int(join_data(destination, address, end)))
    assert bytes_at(address, end) == block
    values = joined.split(b"\n") if SCANNED["data_count"] else []
    assert len(values) == SCANNED["data_count"]
    if len(values) == 1:
        assert SCANNED.span(block, "data") == values[0]
    return Event(block, values, bool(SCANNED["is_error"]), SCANNED["line_count"])


def events(pieces: list[bytes]) -> list[Event]:
    """The events of a stream that comes in these pieces and then ends."""
    found: list[Event] = []
    waiting, resume, has_begun = b"", 0, False
    for number, piece in enumerate([*pieces, b""]):
        waiting += piece
        is_last = number == len(pieces)
        if not has_begun:
            size = int(skip_bom(MEMORY.at_end(waiting), len(waiting), is_last))
            if size < 0:
                continue
            waiting, has_begun = waiting[size:], True
        while scan(waiting, resume, is_last):
            found.append(event_of(waiting))
            waiting, resume = waiting[SCANNED["end"] :], 0
        resume = SCANNED["resume"]
    return found
