"""The backend `openai`: a request becomes a relay, and the settings become upstreams. Main thread."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends.interface import Backend, Format, OptionError, Request
from backends.openai.accounts import RelayAccounts
from backends.openai.ledger import Ledger
from backends.openai.options import SECTION, upstream_options, warnings
from backends.openai.relay import OpenAIRelay, RetryOptions, Shared
from backends.openai.request import prepare
from backends.openai.retries import RetryBudget
from backends.openai.upstreams import Upstreams, UpstreamState
from config.openai import OpenAIBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.openai.options import UpstreamOptions
    from backends.relay import Origin

logger = logging.getLogger(__name__)


class OpenAI(Backend):
    """Relays OpenAI-compatible servers. Options: those of [backend.openai], listed in `config.openai.OpenAIBackend`."""

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        randomness: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises OptionError. What comes after `options` is for tests."""
        super().__init__(options)
        section = _section(options)
        upstreams = upstream_options(section)
        self._warned: set[str] = set()
        self._warn(warnings(upstreams, section.model))
        self._section = section
        self.format: Format = section.format
        self.accounts = RelayAccounts()
        # No secret depends on it: it spreads load and waits, and makes ids of requests.
        self._randomness = random.Random() if randomness is None else randomness  # noqa: S311
        self.ledger = _ledger(section)
        self._shared = Shared(
            Upstreams(upstreams, self._randomness, self.accounts.breaker_changed, clock),
            _retry_options(section),
            RetryBudget(section.retry_percent, section.retry_reserve, clock()),
            self.accounts,
            self.ledger,
            self._randomness,
            clock,
            wall_clock,
            _known_models(section, upstreams),
        )

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> list[str]:
        """Every upstream, key files included; the ledger's directory, but not its file."""
        section = _section(options)
        upstreams = upstream_options(section)
        directory = Path(section.ledger_file).absolute().parent
        if section.ledger_file and not directory.is_dir():
            raise OptionError(f'{SECTION}.ledger_file = "{section.ledger_file}" cannot be used: {directory} is missing')
        return warnings(upstreams, section.model)

    def reload(self, options: Mapping[str, Any]) -> None:
        """Everything but the ledger's file, for streams that start from now. On an OptionError nothing has changed."""
        section = _section(options)
        upstreams = upstream_options(section)
        self._warn(warnings(upstreams, section.model))
        self.options = options
        self._section = section
        self.format = section.format
        self._shared.upstreams.configure(upstreams)
        self._shared.known_models = _known_models(section, upstreams)
        self._shared.retries = _retry_options(section)
        self._shared.budget.configure(section.retry_percent, section.retry_reserve)

    def close(self) -> None:
        """Write what the ledger still has to write."""
        self.ledger.close()

    def open(self, request: Request) -> OpenAIRelay:
        """The request as a relay. Raises RequestError where it is wrong, or nobody serves it."""
        section = self._section
        prepared = prepare(request, section.model, section.format, self._randomness)
        return OpenAIRelay(self._shared, prepared, request.user_id)

    def upstreams(self) -> tuple[UpstreamState, ...]:
        """The upstreams as they are now, in the order of the configuration."""
        return self._shared.upstreams.states

    def origins(self) -> tuple[Origin, ...]:
        """Whom attempts may name. A reload may change them; one that says the same stays the same object."""
        return tuple(state.origin for state in self._shared.upstreams.states)

    def _warn(self, texts: list[str]) -> None:
        for text in texts:
            if text not in self._warned:
                self._warned.add(text)
                logger.warning("%s", text)


def _section(options: Mapping[str, Any]) -> OpenAIBackend:
    try:
        return msgspec.convert(dict(options), OpenAIBackend)
    except msgspec.ValidationError as error:
        raise OptionError(f"{SECTION}: {error}") from error


def _known_models(section: OpenAIBackend, upstreams: tuple[UpstreamOptions, ...]) -> frozenset[str]:
    return frozenset({section.model, *(model for one in upstreams for model in one.models)})


def _retry_options(section: OpenAIBackend) -> RetryOptions:
    return RetryOptions(section.attempts_max, section.backoff_ms, section.backoff_max_ms, section.retry_after_max_s)


def _ledger(section: OpenAIBackend) -> Ledger:
    try:
        return Ledger(section.ledger_file, section.ledger_bytes_max, section.ledger_count_max)
    except OSError as error:
        where = f'{SECTION}.ledger_file = "{section.ledger_file}"'
        raise OptionError(f"{where} cannot be used: {error.strerror or error}") from error
