"""What admission reads of the settings."""

from __future__ import annotations

from config.settings import Settings
from daemon.control.admission.policy import policy_of


def test_the_policy_is_what_the_settings_say() -> None:
    settings = Settings()
    policy = policy_of(settings)
    assert policy.connections_max == settings.server.max_connections
    assert policy.stream_timeout_ms == settings.timeouts.stream_timeout_ms
    assert policy.keep_half_open is False
    assert policy.allowed_uids == frozenset()
