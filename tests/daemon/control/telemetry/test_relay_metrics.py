"""Metrics of relayed streams: names and buckets as the conventions have them, and every number where it belongs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_open_metrics,  # pyright: ignore[reportUnknownVariableType]
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from backends.openai.accounts import RelayAccounts
from backends.openai.ledger import LedgerRow
from backends.relay import FailureKind, Outcome
from config.settings import Settings
from daemon.control.telemetry.metrics import DaemonCollector, MetricsPage
from daemon.control.telemetry.relay_metrics import INTER_TOKEN_BUCKETS_S, RelayCollector, inter_token_of
from daemon.control.telemetry.stream_counts import Accounts
from daemon.plane.relay_table import GAP_BOUNDS_NS, GAP_WORDS
from daemon.plane.table import allocate

if TYPE_CHECKING:
    from collections.abc import Sequence

ACCEPTED = ("", "application/openmetrics-text; version=1.0.0")
COMMON = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "upstream": "a",
    "gen_ai_request_model": "llama",
    "gen_ai_response_model": "llama-3",
}
UPSTREAM = "streaming_daemon_upstream_"


@dataclass
class View:
    name: str
    breaker_state: str = "closed"
    active_count: int = 0


def row() -> LedgerRow:
    return LedgerRow("t", "r", None, "a", "llama", "llama-3", 10, 5, False, 500.0, 3000.0, 100, 0, "complete", 200, "")


def outcome(reason: str = "complete", cancel_s: float | None = None) -> Outcome:
    return Outcome(
        reason=reason,
        is_complete=reason == "complete",
        bytes_sent=100,
        duration_s=3.0,
        first_token_s=0.5,
        last_token_s=2.5,
        token_count=5,
        prompt_tokens=10,
        completion_tokens=5,
        malformed_events=1,
        cancel_s=cancel_s,
        stale_retries=2,
    )


def page(
    accounts: RelayAccounts,
    views: Sequence[View] = (View("a"),),
    inter_token: Sequence[tuple[str, str, Sequence[int], float]] = (),
    rows_dropped: int = 0,
) -> MetricsPage:
    own = DaemonCollector(allocate(Settings()), Accounts(), {"version": "1"}, 900, lambda: 0)
    return MetricsPage(own, RelayCollector(accounts, lambda: views, lambda: inter_token, lambda: rows_dropped))


def samples(scraped: MetricsPage, accept: str = "") -> dict[str, float]:
    answer = scraped(accept)
    text = answer.body.decode()
    found: dict[str, float] = {}
    is_open = "openmetrics" in answer.content_type
    for family in parse_open_metrics(text) if is_open else parse_text(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            found[key(sample.name, **sample.labels)] = sample.value
    return found


def key(name: str, **labels: str) -> str:
    """A sample's name and labels, whatever their order."""
    return name + ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))


@pytest.mark.parametrize("accept", ACCEPTED)
def test_a_configured_upstream_is_there_from_the_first_scrape(accept: str) -> None:
    found = samples(page(RelayAccounts(), [View("a", "half_open", 3)]), accept)
    assert found[key(UPSTREAM + "streams_active", upstream="a")] == 3
    states = {state: found[key(UPSTREAM + "breaker_state", upstream="a", state=state)] for state in ("closed", "open")}
    assert states == {"closed": 0, "open": 0}
    assert found[key(UPSTREAM + "breaker_state", upstream="a", state="half_open")] == 1
    for name in ("attempts", "retries", "cancellations", "malformed_events", "stale_connections"):
        assert found[key(f"{UPSTREAM}{name}_total", upstream="a")] == 0
    assert found[key(UPSTREAM + "breaker_changes_total", upstream="a", state="open")] == 0
    assert found[key(UPSTREAM + "cancel_seconds_count", upstream="a")] == 0
    assert found["streaming_daemon_ledger_rows_dropped_total"] == 0


@pytest.mark.parametrize("accept", ACCEPTED)
def test_a_stream_is_seen_in_the_conventions_metrics(accept: str) -> None:
    accounts = RelayAccounts()
    accounts.stream_ended("a", "llama", row(), outcome())
    accounts.stream_ended("a", "llama", row(), outcome("client_gone", cancel_s=0.004))
    found = samples(page(accounts), accept)
    assert found[key("gen_ai_server_time_to_first_token_seconds_count", **COMMON)] == 2
    assert found[key("gen_ai_server_time_to_first_token_seconds_bucket", **COMMON, le="0.5")] == 2
    assert found[key("gen_ai_server_time_to_first_token_seconds_bucket", **COMMON, le="0.25")] == 0
    assert found[key("gen_ai_server_time_per_output_token_seconds_sum", **COMMON)] == pytest.approx(0.5)
    assert found[key("gen_ai_server_request_duration_seconds_sum", **COMMON, error_type="")] == 3.0
    assert found[key("gen_ai_server_request_duration_seconds_count", **COMMON, error_type="client_gone")] == 1
    for direction, tokens in (("input", 20), ("output", 10)):
        labels = {**COMMON, "gen_ai_token_type": direction, "estimated": "false"}
        assert found[key("gen_ai_client_token_usage_sum", **labels)] == tokens


def test_everything_else_is_counted_by_upstream() -> None:
    accounts = RelayAccounts()
    accounts.stream_ended("a", "llama", row(), outcome("client_gone", cancel_s=0.004))
    accounts.attempt_failed("a", "llama", FailureKind.STATUS)
    accounts.attempt_failed("a", "unknown", FailureKind.STATUS)
    accounts.retried("b")
    accounts.breaker_changed("a", "open")
    found = samples(page(accounts, [View("a", "open"), View("b")], rows_dropped=4))
    assert found[key(UPSTREAM + "attempt_failures_total", upstream="a", kind="status")] == 2
    assert found[key(UPSTREAM + "attempts_total", upstream="a")] == 3
    assert found[key(UPSTREAM + "retries_total", upstream="b")] == 1
    assert found[key(UPSTREAM + "breaker_state", upstream="a", state="open")] == 1
    assert found[key(UPSTREAM + "breaker_changes_total", upstream="a", state="open")] == 1
    assert found[key(UPSTREAM + "cancellations_total", upstream="a")] == 1
    assert found[key(UPSTREAM + "cancel_seconds_bucket", upstream="a", le="0.0025")] == 0
    assert found[key(UPSTREAM + "cancel_seconds_bucket", upstream="a", le="0.005")] == 1
    assert found[key(UPSTREAM + "malformed_events_total", upstream="a")] == 1
    assert found[key(UPSTREAM + "stale_connections_total", upstream="a")] == 2
    assert (
        found[key(UPSTREAM + "streams_ended_total", upstream="a", gen_ai_request_model="llama", reason="client_gone")]
        == 1
    )
    assert found["streaming_daemon_ledger_rows_dropped_total"] == 4


def test_gaps_between_tokens_come_from_the_plane() -> None:
    counts = [0] * (len(INTER_TOKEN_BUCKETS_S) + 1)
    counts[0], counts[1], counts[-1] = 5, 2, 1
    found = samples(page(RelayAccounts(), inter_token=[("a", "llama", counts, 4.5)]))
    labels = {"upstream": "a", "gen_ai_request_model": "llama"}
    name = UPSTREAM + "inter_token_seconds"
    assert found[key(name + "_bucket", **labels, le="0.01")] == 5
    assert found[key(name + "_bucket", **labels, le="0.025")] == 7
    assert found[key(name + "_bucket", **labels, le="2.5")] == 7
    assert found[key(name + "_bucket", **labels, le="+Inf")] == 8
    assert found[key(name + "_sum", **labels)] == 4.5


def test_the_planes_histogram_is_the_one_that_is_shown() -> None:
    assert [bound_ns / 1e9 for bound_ns in GAP_BOUNDS_NS] == list(INTER_TOKEN_BUCKETS_S)
    assert len(GAP_BOUNDS_NS) + 1 < GAP_WORDS
    plane = allocate(Settings())
    plane.gaps[1, 0], plane.gaps[1, len(GAP_BOUNDS_NS)], plane.gaps[1, -1] = 2, 1, 9_020_000_000
    first, second = inter_token_of(plane, [("a", "llama"), ("b", "llama")])
    assert first == ("a", "llama", [0] * 14, 0.0)
    assert second == ("b", "llama", [2, *[0] * 12, 1], 9.02)


def test_a_label_cannot_break_the_page() -> None:
    accounts = RelayAccounts()
    model = 'x"} 1\nstreaming_daemon_connections_active 99\n\\'
    accounts.stream_ended("a", model, row(), outcome())
    for accept in ACCEPTED:
        found = samples(page(accounts), accept)
        assert found["streaming_daemon_connections_active"] == 0


def test_the_manual_names_every_metric_and_no_other() -> None:
    manual = (Path(__file__).parents[4] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = manual.partition("## Metrics of relayed streams")[2].partition("\n## ")[0]
    first_columns = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    described = {name for column in first_columns for name in re.findall(r"`(\w+)`", column)}
    collector = RelayCollector(RelayAccounts(), list, list)
    offered = {
        family.name.removeprefix("streaming_daemon_") + ("_total" if family.type == "counter" else "")
        for family in collector.collect()
    }
    assert described == offered
    assert all(f"`{kind.value}`" in section for kind in FailureKind)
