"""SIGHUP: read the configuration again from the same sources, and log the result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from config.load import ConfigError, load, reload_difference, reloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.settings import Settings

logger = logging.getLogger(__name__)


def read_again(arguments: Sequence[str], in_force: Settings) -> Settings | None:
    """The new settings in force, or None when the configuration has an error and nothing changes."""
    try:
        loaded = load(arguments)
    except ConfigError as error:
        logger.error("reload failed, the configuration in force stays: %s", error)  # noqa: TRY400 (no traceback)
        return None
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    applied, needs_restart = reload_difference(in_force, loaded.settings)
    logger.info("reloaded: %s", ", ".join(applied) or "nothing has changed that a reload can change")
    if needs_restart:
        logger.warning("a restart is needed for %s", ", ".join(needs_restart))
    return reloaded(in_force, loaded.settings)
