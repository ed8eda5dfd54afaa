"""The process's limit on file descriptors, which bounds the number of streams. Main thread, before the planes start."""

from __future__ import annotations

import logging
import resource

DESCRIPTOR_RESERVE = 200  # pipes, rings, log, metrics, workers; and the second descriptor of streams that are starting

logger = logging.getLogger(__name__)


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard limit; returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.warning("RLIMIT_NOFILE stays at %d: %s", soft, error)
        return soft
    return hard


def streams_that_fit(descriptor_limit: int, streams_wanted: int) -> int:
    """The number of streams that the descriptors allow, at least 1; warns when it is below `streams_wanted`."""
    fitting = max(1, descriptor_limit - DESCRIPTOR_RESERVE)
    if fitting >= streams_wanted:
        return streams_wanted
    logger.warning(
        "max_connections is %d, but RLIMIT_NOFILE, less what HTTP takes, is %d and leaves room for %d streams: going on"
        " with %d (LimitNOFILE= in the unit, ulimit -n in a shell)",
        streams_wanted, descriptor_limit, fitting, fitting,
    )  # fmt: skip
    return fitting


def connections_that_fit(descriptor_limit: int, connections_wanted: int) -> int:
    """The number of HTTP connections that leaves room for at least as many streams; at least 1.

    Each connection may take two descriptors: its own, and one on which the front reads a stream.
    """
    fitting = max(1, (descriptor_limit - DESCRIPTOR_RESERVE) // 4)
    if fitting >= connections_wanted:
        return connections_wanted
    logger.warning(
        "http.connections_max is %d, but RLIMIT_NOFILE of %d leaves room for %d beside streams: going on with %d"
        " (LimitNOFILE= in the unit, ulimit -n in a shell)",
        connections_wanted, descriptor_limit, fitting, fitting,
    )  # fmt: skip
    return fitting
