"""The process's share of descriptors, which decides how many streams fit. Main thread, before the planes start."""

from __future__ import annotations

import logging
import resource

DESCRIPTOR_RESERVE = 200  # pipes, rings, log, metrics, workers; and the second descriptor of streams that are starting

logger = logging.getLogger(__name__)


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE as far as we may; returns the limit in force."""
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
    """How many of the wanted streams the descriptors allow, at least one; says so when it is fewer."""
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
    """How many connections of the HTTP front go with at least as many streams, at least one.

    Each may take two descriptors: its own, and one on which the front reads a stream.
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
