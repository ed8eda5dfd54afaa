"""TCP ports for servers that a test starts and that must be told their port.

A port that the kernel has chosen for a probe is one of those that it gives to outgoing connections as well: until the
server binds it, any client on the machine may be given it. These ports lie below that range, and each worker of
pytest-xdist has its own.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
from pathlib import Path

EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST = 10_000
WORKERS_MAX = 16


def _worker_number() -> int:
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def _candidates() -> itertools.cycle[int]:
    end = int(EPHEMERAL_RANGE.read_text().split()[0])
    assert end > FIRST + 100 * WORKERS_MAX, f"{EPHEMERAL_RANGE} begins at {end}: no room for servers below it"
    ports = list(range(FIRST + _worker_number() % WORKERS_MAX, end, WORKERS_MAX))
    # Not the same ones in each run: two runs on one machine, one after the other or at once, would meet on them.
    start = random.SystemRandom().randrange(len(ports))
    return itertools.cycle(ports[start:] + ports[:start])


_ports = _candidates()


def unused_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no outgoing connection is given."""
    for port in itertools.islice(_ports, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"1,000 ports from {FIRST} on are all in use")
