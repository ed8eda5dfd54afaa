"""What the upstream saw: requests and connections, with monotonic times. Written on its thread, read by tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ConnectionRecord:
    """One connection."""

    number: int
    kind: Literal["tcp", "unix", "tls"]
    at_s: float
    request_count: int = 0
    closed_s: float | None = None  # the client's FIN or reset, or our own close


@dataclass(eq=False)
class Request:
    """One request, and what became of it."""

    number: int
    connection: int
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    protocol: Literal["HTTP/1.1", "HTTP/2"]
    at_s: float
    body: bytes = b""
    sent_bytes: int = 0  # of the answer, taken by the kernel; over TLS and HTTP/2: by the layer above it
    ended_s: float | None = None  # the answer's last step was done
    left_s: float | None = None  # the client was seen to leave before that
    notes: list[str] = field(default_factory=list[str])

    @property
    def json(self) -> dict[str, Any]:
        """The body."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def model(self) -> str:
        """The model that is asked for; empty where none is."""
        try:
            found: object = json.loads(self.body)
        except ValueError:
            return ""
        name: object = found.get("model") if isinstance(found, dict) else ""  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return name if isinstance(name, str) else ""

    def is_for(self, name: str) -> bool:
        """Whether it is for this model, or has this X-Request-Id."""
        return name in (self.model, *self.values("X-Request-Id"))

    def header(self, name: str) -> str | None:
        """A header's value, whatever the case of its name; None where it did not come."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]
