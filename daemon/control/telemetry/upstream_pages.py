"""Upstreams on /ready and /metrics: the relaying backends' state combined with what the planes know."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from daemon.control.telemetry.pages import UpstreamStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import Collector

    from daemon.control.wiring import Planes


HTTP_BACKEND = "openai"


def upstream_statuses(planes: Planes, default_backend: str, *, serves_http: bool = False) -> Iterator[UpstreamStatus]:
    """The status of each upstream of each relaying backend; HTTP requests all use the backend `openai`."""
    for name, backend in planes.relaying.items():
        is_default = name == default_backend or (serves_http and name == HTTP_BACKEND)
        for upstream in backend.upstreams():
            reachable = planes.reachability.of(upstream.name).reachable
            yield UpstreamStatus(upstream.name, reachable, upstream.breaker_state, is_default)


def relay_collectors(planes: Planes) -> list[Collector]:
    """Collectors of the relaying backends. The library is imported only if there is one."""
    collectors: list[Collector] = []
    if planes.relays is None:
        return collectors
    from daemon.control.telemetry.relay_metrics import RelayCollector, inter_token_of  # noqa: PLC0415

    series, plane = planes.relays.series, planes.plane
    for backend in planes.relaying.values():
        ledger = backend.ledger
        collectors.append(
            RelayCollector(
                backend.accounts,
                backend.upstreams,
                lambda: inter_token_of(plane, series),
                rows_dropped=functools.partial(getattr, ledger, "dropped_count"),
            )
        )
    return collectors
