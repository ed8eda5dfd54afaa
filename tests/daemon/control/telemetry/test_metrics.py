"""Metrics against the planes' own counters."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_open_metrics,  # pyright: ignore[reportUnknownVariableType]
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from config.settings import Settings
from daemon.control.telemetry.http_metrics import HttpAccounts
from daemon.control.telemetry.metrics import DaemonCollector, MetricsPage, cumulative_buckets
from daemon.control.telemetry.stream_counts import Accounts, summary
from daemon.plane import counters
from daemon.plane.state import BACKEND_ERROR, COMPLETE, HANDOFF_TIMEOUT, REASONS
from daemon.plane.table import Plane, allocate

ACCEPTED = ("", "application/openmetrics-text; version=1.0.0", "text/plain;version=1.0.0", "text/plain;version=x")
NAMES = ("Peak streams", "Started", "Completed", "Failed", "Bytes sent", "Messages sent", "Duration", "CPU time")


@pytest.fixture(scope="module")
def plane() -> Plane:
    return allocate(Settings())


@pytest.fixture
def accounts() -> Accounts:
    return Accounts()


def page(plane: Plane, accounts: Accounts) -> MetricsPage:
    information = {"version": "1", "kernel": "epoll", "sqpoll": "0", "thread_pool": "1"}
    return MetricsPage(DaemonCollector(plane, accounts, information, 900, lambda: 5))


def samples(scraped: MetricsPage, accept: str = "") -> dict[str, float]:
    answer = scraped(accept)
    text = answer.body.decode()
    found: dict[str, float] = {}
    is_open = "openmetrics" in answer.content_type
    for family in parse_open_metrics(text) if is_open else parse_text(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.mark.parametrize("accept", ACCEPTED)
def test_every_metric_is_there_from_the_first_scrape(plane: Plane, accounts: Accounts, accept: str) -> None:
    found = samples(page(plane, accounts), accept)
    assert found["streaming_daemon_connections_max"] == 900
    assert found["streaming_daemon_queue_length"] == 5
    assert found['streaming_daemon_info{kernel="epoll",sqpoll="0",thread_pool="1",version="1"}'] == 1
    for status in ("started", "completed", "failed"):
        assert found[f'streaming_daemon_requests_total{{status="{status}"}}'] == 0
    for name in counters.HISTOGRAMS:
        assert found[f"streaming_daemon_{name}_seconds_count"] == 0
    assert found['streaming_daemon_streams_ended_total{reason="client_gone"}'] == 0
    assert found["process_resident_memory_bytes"] > 0
    assert any(name.startswith("python_info") for name in found)


def test_streams_are_counted_by_what_became_of_them(plane: Plane, accounts: Accounts) -> None:
    for _ in range(3):
        accounts.stream_started("mock")
    accounts.stream_ended("mock", COMPLETE)
    accounts.stream_ended("mock", BACKEND_ERROR)
    accounts.stream_ended(None, HANDOFF_TIMEOUT)
    accounts.handoff_rejected("malformed")
    found = samples(page(plane, accounts))
    assert found['streaming_daemon_requests_total{status="started"}'] == 3
    assert found['streaming_daemon_requests_total{status="completed"}'] == 1
    assert found['streaming_daemon_requests_total{status="failed"}'] == 1
    assert found["streaming_daemon_connections_active"] == 1
    assert found["streaming_daemon_connections_peak"] == 3
    assert found['streaming_daemon_streams_ended_total{reason="handoff_timeout"}'] == 1
    assert found['streaming_daemon_handoffs_rejected_total{reason="malformed"}'] == 1
    assert found['streaming_daemon_handoffs_rejected_total{reason="handoff_timeout"}'] == 1
    assert found['streaming_daemon_backend_requests_total{backend="mock",status="failed"}'] == 1


def test_the_planes_counters_and_histograms_are_read_at_the_scrape(plane: Plane, accounts: Accounts) -> None:
    scraped = page(plane, accounts)
    plane.counters[counters.BYTES_SENT] = 1 << 40
    plane.histograms[counters.HISTOGRAM_FIRST_BYTE, 10] = 4  # 512 to 1,023 us
    plane.histogram_sums[counters.HISTOGRAM_FIRST_BYTE] = 3_000_000
    found = samples(scraped)
    assert found["streaming_daemon_bytes_total"] == 1 << 40
    assert found['streaming_daemon_first_byte_seconds_bucket{le="0.000512"}'] == 0
    assert found['streaming_daemon_first_byte_seconds_bucket{le="0.001024"}'] == 4
    assert found["streaming_daemon_first_byte_seconds_count"] == 4
    assert found["streaming_daemon_first_byte_seconds_sum"] == pytest.approx(0.003)


def test_buckets_add_up_and_lose_nothing() -> None:
    counts = np.random.default_rng(1).integers(0, 100, counters.HISTOGRAM_BUCKETS).tolist()
    buckets = cumulative_buckets(counts)
    values = [value for _, value in buckets]
    assert values == sorted(values)
    assert buckets[-1] == ("+Inf", sum(counts))
    bounds = [float(bound) for bound, _ in buckets]
    assert bounds == sorted(bounds)
    # A duration of d us lies in bucket d.bit_length(), so everything below 2**k us is in the buckets up to k.
    assert dict(buckets)[repr(2**10 / 1e6)] == sum(counts[:11])


def test_the_manual_names_every_metric_and_no_other(plane: Plane, accounts: Accounts) -> None:
    manual = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
    table = manual.partition("## Metrics")[2].partition("\n\nHistograms have")[0]
    first_columns = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    described = {name for column in first_columns for name in re.findall(r"`(\w+)`", column)}
    collector = DaemonCollector(plane, accounts, {"version": "1"}, 900, lambda: 0)
    offered = {
        family.name.removeprefix("streaming_daemon_") + ("_total" if family.type == "counter" else "")
        for family in (*collector.collect(), *HttpAccounts().collect())
    }
    assert described == offered
    assert all(f"`{reason}`" in manual for reason in REASONS)


def test_the_summary_names_what_the_benchmark_wants(plane: Plane, accounts: Accounts) -> None:
    accounts.stream_started("mock")
    accounts.stream_ended("mock", COMPLETE)
    plane.counters[counters.MESSAGES_SENT] = 18
    text = summary(accounts, plane)
    for name in (
        "Peak streams",
        "Started",
        "Completed",
        "Failed",
        "Bytes sent",
        "Messages sent",
        "Duration",
        "CPU time",
    ):
        assert f"  {name} " in text
    plane.counters[counters.MESSAGES_SENT] = 0
    assert "CPU per message" in summary(accounts, plane)


def test_requests_over_http_are_counted_by_route() -> None:
    accounts = HttpAccounts()
    accounts.connection_count = lambda: 3
    scope = {"method": "POST", "route": SimpleNamespace(path="/v1/completions")}
    accounts.on_response(scope, 200)
    accounts.on_response(scope, 200)
    accounts.on_response({"method": "BREW"}, 405)
    accounts.on_response(None, 400)
    requests, connections = accounts.collect()
    counted = {tuple(sample.labels.values()): sample.value for sample in requests.samples}
    assert counted == {
        ("/v1/completions", "POST", "200"): 2,
        ("other", "other", "405"): 1,
        ("other", "other", "400"): 1,
    }
    assert connections.samples[0].value == 3
