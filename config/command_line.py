"""The command line: the C daemon's options with the same meanings, and ours.

An option's value is stored under its `section.key`; the loader checks it like a value from a file.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import inspect

from config import VERSION
from config.schema import KEYS, choices, shown_setting

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "streaming-daemon"
Action = Literal["run", "check_config", "check_kernel", "warm_cache"]

OPTIONS = {
    "--socket": "server.socket_path",
    "--socket-mode": "server.socket_mode",
    "--socket-type": "server.socket_type",
    "--max-connections": "server.max_connections",
    "--delay": "streaming.message_delay_ms",
    "--backend": "server.backend",
    "--kernel": "server.kernel",
    "--thread-pool": "thread_pool.thread_pool",
    "--pool-size": "thread_pool.pool_size",
    "--sqpoll": "performance.sqpoll",
    "--benchmark": "monitoring.benchmark",
    "--http": "http.listen",
    "--log-level": "logging.level",
    "--log-format": "logging.format",
}
"""Options that set one value each. `--metrics` sets two and is handled separately."""

_METAVARS = {
    "--socket": "PATH",
    "--socket-mode": "MODE",
    "--max-connections": "N",
    "--delay": "MS",
    "--backend": "NAME",
    "--http": "HOST:PORT",
    "--pool-size": "N",
}
_METRICS = re.compile(r"(?:(?P<address>\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]]+):)?(?P<port>[0-9]+)")


@dataclass(frozen=True)
class CommandLine:
    """The parsed command line: values by `section.key`, text or True, and the option that set each."""

    values: dict[str, Any]
    options: dict[str, str]
    file: Path | None
    action: Action


def parse(argv: Sequence[str]) -> CommandLine:
    """Parse the arguments, without the program's name. Exits for --help, --version and unknown options."""
    arguments = vars(parser().parse_args(list(argv)))
    values = {path: arguments[path] for path in OPTIONS.values() if path in arguments}
    options = {path: option for option, path in OPTIONS.items() if path in arguments}
    for path, value in arguments.get("metrics", {}).items():
        values[path], options[path] = value, "--metrics"
    return CommandLine(values, options, arguments.get("config"), arguments.get("action", "run"))


def parser() -> argparse.ArgumentParser:
    """The parser, with descriptions and defaults from the settings."""
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Streams server-sent events on client sockets that Apache hands over.",
        epilog="Precedence: the command line, the environment, the file, the defaults. "
        "The file is that of --config, or the first that exists of ./streaming-daemon.toml, "
        "/etc/streaming-daemon/config.toml and /etc/streaming-daemon.toml. "
        f"To compute the features of an audio file without a daemon: {PROGRAM} mel FILE.",
        argument_default=argparse.SUPPRESS,
    )
    for option, path in OPTIONS.items():
        _add(made, option, path)
    made.add_argument(
        "--metrics",
        type=_metrics,
        metavar="[ADDRESS:]PORT",
        help="metrics and health by HTTP, on 127.0.0.1 unless an address is given (default: off)",
    )
    made.add_argument("--config", type=Path, metavar="FILE", help="configuration file, TOML")
    actions = made.add_mutually_exclusive_group()
    for option, action, text in (
        ("--check-config", "check_config", "print the settings in force and the source of each value, then exit"),
        ("--check-kernel", "check_kernel", "print what the kernel offers and what will be used, then exit"),
        ("--warm-cache", "warm_cache", "does nothing: machine code is built before the daemon runs"),
    ):
        actions.add_argument(option, dest="action", action="store_const", const=action, help=text)
    made.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    return made


def _add(made: argparse.ArgumentParser, option: str, path: str) -> None:
    key = KEYS[path]
    default = "off" if key.default is False else shown_setting(path, key.default).strip('"')
    text = f"{key.description} (default: {default})".replace("%", "%%")
    if isinstance(key.type, inspect.BoolType):
        made.add_argument(option, dest=path, action="store_true", default=argparse.SUPPRESS, help=text)
    elif isinstance(key.type, inspect.LiteralType):
        # No `choices`: the loader reports an invalid value in the same words as for a file.
        made.add_argument(option, dest=path, metavar="|".join(choices(key)), help=text)
    else:
        made.add_argument(option, dest=path, metavar=_METAVARS[option], help=text)


def _metrics(text: str) -> dict[str, str]:
    match = _METRICS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not PORT, ADDRESS:PORT or [IPV6]:PORT")
    values = {"monitoring.metrics_port": match["port"]}
    if match["address"] is not None:
        values["monitoring.metrics_address"] = match["address"].strip("[]")
    return values
