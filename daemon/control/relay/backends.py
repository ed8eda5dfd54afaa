"""Backends that relay streams, and the interface the daemon requires of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.interface import Backend
    from backends.openai.accounts import RelayAccounts
    from backends.openai.ledger import Ledger
    from backends.openai.upstreams import UpstreamState
    from backends.relay import Origin


class RelayingBackend(Protocol):
    """A backend whose streams are relayed."""

    accounts: RelayAccounts
    ledger: Ledger

    def origins(self) -> tuple[Origin, ...]:
        """The origins that attempts may name."""
        ...

    def upstreams(self) -> tuple[UpstreamState, ...]:
        """The state of its upstreams."""
        ...


def is_relaying(backend: object) -> TypeGuard[RelayingBackend]:
    """Whether a backend has upstreams."""
    return hasattr(backend, "origins") and hasattr(backend, "accounts")


def relaying_backends(registry: Iterable[tuple[str, Backend]]) -> dict[str, RelayingBackend]:
    """The relaying backends of the registry."""
    return {name: backend for name, backend in registry if is_relaying(backend)}
