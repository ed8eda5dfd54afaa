"""The loads that have a name. Each says what it shows, and what the server must be told to answer that way."""

from __future__ import annotations

from dataclasses import dataclass, replace

MOCK_MESSAGES = 18  # what the mock backend sends where nothing else is asked of it


@dataclass(frozen=True)
class Scenario:
    """Defaults for the options of the same names; an option that is given wins."""

    name: str
    shows: str
    streams: int
    total: int
    messages: int | None  # None: as many as the server sends
    interval_ms: float
    rate_per_s: float
    is_relayed: bool = False  # the tokens come from an upstream (`relay`), and `messages` is how many
    is_soak: bool = False  # its picture is of memory, and it runs only where it is asked for
    is_http: bool = False  # clients of the HTTP front, which ask for `messages` tokens; runs only where asked for
    baseline_share: float = 0.0  # of an HTTP scenario's streams, what the baseline gets: it takes that much longer

    def daemon_arguments(self) -> list[str]:
        """Arguments that make the daemon's mock backend keep the scenario's pace."""
        return ["--delay", f"{self.interval_ms:g}"]

    def daemon_config(self) -> str:
        """A configuration file for the number of messages, or nothing where the mock's own number is right."""
        if self.messages is None or self.messages == MOCK_MESSAGES:
            return ""
        per_second = round(1000 / self.interval_ms) if self.interval_ms else 0
        return f"[backend.mock]\ntokens = {self.messages}\ntokens_per_second = {per_second}\n"


def _http(
    name: str,
    shows: str,
    streams: int,
    total: int,
    tokens: int,
    *,
    per_second: int = 0,
    baseline: float = 0.0,
) -> Scenario:
    """One of the HTTP front's, whose streams start as fast as they can."""
    interval_ms = 1000 / per_second if per_second else 0.0
    return Scenario(
        f"http-{name}",
        shows,
        streams,
        total,
        tokens,
        interval_ms,
        0.0,
        is_http=True,
        baseline_share=baseline,
    )


# Streams start at a rate where the start itself is not what is measured; "ready" is about starting, so at none.
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("paced", "CPU per message and pace of many streams", 3_000, 3_000, 200, 50.0, 3_000.0),
        Scenario("ready", "admission: short streams, all at once", 500, 20_000, MOCK_MESSAGES, 0.0, 0.0),
        Scenario("first-byte", "one stream at a time: time to its first byte", 1, 500, MOCK_MESSAGES, 0.0, 0.0),
        Scenario("hold", "pace and memory of as many as fit", 9_000, 9_000, 200, 50.0, 3_000.0),
        Scenario("relay", "CPU per relayed token, pace, and cancelling", 500, 2_500, 100, 20.0, 500.0, is_relayed=True),
        Scenario(
            "relay-soak",
            "memory over ten million relayed tokens",
            16,
            10_000,
            1_000,
            0.0,
            0.0,
            is_relayed=True,
            is_soak=True,
        ),
        _http("one", "one unpaced stream after another: tokens a second, CPU per token", 1, 20, 300_000, baseline=0.05),
        _http("many", "unpaced streams side by side: tokens a second over all", 16, 64, 200_000),
        _http("rate", "a stream of 120,000 tokens a second", 1, 3, 600_000, per_second=120_000),
        _http("first", "one client: time to the first token", 1, 2_000, 18, baseline=0.5),
        _http("clients", "64 clients, one request after another", 64, 6_400, 128, per_second=120_000, baseline=0.3),
        _http("admission", "streams of one token: CPU to let a request in", 16, 10_000, 1, baseline=0.3),
        replace(_http("hold", "memory of open streams", 10_000, 10_000, 200, per_second=10), rate_per_s=1_000.0),
    )
}
CUSTOM = Scenario("custom", "what the options say", 100, 1_000, None, 0.0, 0.0)
