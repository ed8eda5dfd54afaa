"""The loads that have a name. Each says what it shows, and what the server must be told to answer that way."""

from __future__ import annotations

from dataclasses import dataclass

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

    def daemon_arguments(self) -> list[str]:
        """Arguments that make the daemon's mock backend keep the scenario's pace."""
        return ["--delay", f"{self.interval_ms:g}"]

    def daemon_config(self) -> str:
        """A configuration file for the number of messages, or nothing where the mock's own number is right."""
        if self.messages is None or self.messages == MOCK_MESSAGES:
            return ""
        per_second = round(1000 / self.interval_ms) if self.interval_ms else 0
        return f"[backend.mock]\ntokens = {self.messages}\ntokens_per_second = {per_second}\n"


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
    )
}
CUSTOM = Scenario("custom", "what the options say", 100, 1_000, None, 0.0, 0.0)
