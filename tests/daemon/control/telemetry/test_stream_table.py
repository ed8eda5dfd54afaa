"""The table that SIGUSR1 logs."""

from __future__ import annotations

import numpy as np

from daemon.control.telemetry import stream_table
from daemon.plane.state import CLOSING, STREAMING
from daemon.plane.table import STREAM


def records(count: int) -> stream_table.StreamRecords:
    return np.zeros(count, STREAM)


def test_an_idle_daemon_has_one_line() -> None:
    assert list(stream_table.lines(records(8), 0, lambda _slot: "-")) == ["0 streams"]


def test_the_oldest_come_first_and_the_rest_is_counted() -> None:
    snapshot = records(stream_table.ROWS_MAX + 10)
    snapshot["state"][2:] = STREAMING
    snapshot["state"][5] = CLOSING
    snapshot["accepted_ns"] = np.arange(len(snapshot))[::-1] * 1_000_000_000
    snapshot["first_byte_ns"][7] = snapshot["accepted_ns"][7] + 250_000_000
    snapshot["sent_bytes"][7], snapshot["message_count"][7] = 1234, 18
    now_ns = 1_000_000_000_000
    lines = list(stream_table.lines(snapshot, now_ns, lambda slot: f"backend-{slot}"))
    assert lines[0] == "208 streams, 1 closing, 207 streaming"
    assert lines[-1] == "... and 8 younger streams"
    rows = [line.split() for line in lines[2:-1]]
    assert len(rows) == stream_table.ROWS_MAX
    ages = [float(row[3]) for row in rows]
    assert ages == sorted(ages, reverse=True)
    assert rows[0][0] == str(len(snapshot) - 1)
    (row,) = [line for line in stream_table.lines(snapshot[:9], now_ns, lambda slot: f"b{slot}") if line.endswith("b7")]
    assert row.split()[4:] == ["0.250", "1234", "18", "b7"]
