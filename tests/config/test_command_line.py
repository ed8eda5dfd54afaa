"""The C daemon's options with their meanings, and ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import VERSION
from config import load as loading
from config.load import ConfigError, load
from config.schema import value_of

ARGUMENTS: list[tuple[list[str], str, object]] = [
    (["--socket", "/tmp/one.sock"], "server.socket_path", "/tmp/one.sock"),
    (["--socket-mode", "0600"], "server.socket_mode", 0o600),
    (["--socket-mode", "600"], "server.socket_mode", 0o600),
    (["--socket-type", "stream"], "server.socket_type", "stream"),
    (["--max-connections", "5"], "server.max_connections", 5),
    (["--delay", "0"], "streaming.message_delay_ms", 0),
    (["--thread-pool"], "thread_pool.thread_pool", True),
    (["--pool-size", "64"], "thread_pool.pool_size", 64),
    (["--sqpoll"], "performance.sqpoll", True),
    (["--benchmark"], "monitoring.benchmark", True),
    (["--backend", "echo"], "server.backend", "echo"),
    (["--kernel", "epoll"], "server.kernel", "epoll"),
    (["--log-level", "debug"], "logging.level", "debug"),
    (["--log-format", "json"], "logging.format", "json"),
    (["--metrics", "9090"], "monitoring.metrics_port", 9090),
    (["--metrics", "0"], "monitoring.metrics_port", 0),
]


@pytest.fixture(autouse=True)
def _no_default_files(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(loading, "PLACES", ())


@pytest.mark.parametrize(("arguments", "path", "expected"), ARGUMENTS, ids=str)
def test_each_option_sets_its_value(arguments: list[str], path: str, expected: object) -> None:
    loaded = load(arguments, {})
    assert value_of(loaded.settings, path) == expected
    assert loaded.provenance[path] == f"command line {arguments[0]}"
    assert sum(origin != "default" for origin in loaded.provenance.values()) == 1


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("9090", "127.0.0.1", 9090),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("localhost:80", "localhost", 80),
        ("[::1]:80", "::1", 80),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_metrics_are_local_unless_an_address_is_given(text: str, address: str, port: int) -> None:
    monitoring = load(["--metrics", text], {}).settings.monitoring
    assert (monitoring.metrics_address, monitoring.metrics_port) == (address, port)


def test_metrics_without_an_address_keep_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "given.toml"
    path.write_text('[monitoring]\nmetrics_address = "::"')
    monitoring = load(["--config", str(path), "--metrics", "80"], {}).settings.monitoring
    assert (monitoring.metrics_address, monitoring.metrics_port) == ("::", 80)


@pytest.mark.parametrize("text", ["", "port", ":80", "::1:80", "127.0.0.1:", "[::1]", "1:2:3", "-1"])
def test_malformed_metrics_are_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load([f"--metrics={text}"], {})
    assert raised.value.code == 2
    assert "PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--pool-size", "65"],
            "--pool-size (thread_pool.pool_size) = 65 is refused: permitted is an integer, 1 to 64",
        ),
        (["--delay", "fast"], '--delay (streaming.message_delay_ms) = "fast" is refused'),
        (["--kernel", "kqueue"], 'permitted is "auto" or "io_uring" or "epoll"'),
        (["--socket-mode", "rw"], 'permitted is a string of octal digits, "0000" to "0777"'),
        (["--metrics", "65536"], "--metrics (monitoring.metrics_port) = 65536 is refused"),
        (["--socket", "x" * 108], "permitted is a string of 1 to 107 characters"),
        (["--socket", ""], "permitted is a string of 1 to 107 characters"),
    ],
)
def test_a_value_out_of_range_is_refused(arguments: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(arguments, {})
    assert str(raised.value).startswith("command line: --")
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("option", "action"),
    [("--check-config", "check_config"), ("--check-kernel", "check_kernel"), ("--warm-cache", "warm_cache")],
)
def test_actions(option: str, action: str) -> None:
    assert load([option], {}).action == action


@pytest.mark.parametrize("arguments", [["--check-config", "--warm-cache"], ["--no-such"], ["stray"], ["--socket"]])
def test_what_is_no_command_line_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load(arguments, {})
    assert raised.value.code == 2
    assert "usage: streaming-daemon" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit) as raised:
            load([option], {})
        assert raised.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"streaming-daemon {VERSION}\n")
    for arguments, _, _ in ARGUMENTS:
        assert arguments[0] in shown
