"""Types for the part of pycurl that we use: it has none. It is imported when the first transfer begins: 6 MB."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any, Protocol, cast

# CURLcodes without a name in pycurl.
E_HTTP2_STREAM = 92
E_TOO_LARGE = 100

# Where distributions keep trusted certificates; the wheel's libcurl knows only the path of its build machine.
_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)


class Easy(Protocol):
    """A `pycurl.Curl`: a transfer's options, and its progress once added to a Multi."""

    def setopt(self, option: int, value: object) -> None:
        """Set an option."""

    def getinfo(self, option: int) -> Any:  # noqa: ANN401  (depends on the option)
        """A property of a transfer that has ended."""

    def pause(self, bitmask: int) -> None:
        """Pause or resume sending and receiving."""

    def reset(self) -> None:
        """Clear all options and release what they refer to."""

    def close(self) -> None:
        """Free it."""


class Multi(Protocol):
    """A `pycurl.CurlMulti`: transfers and the connections they share."""

    def setopt(self, option: int, value: object) -> None:
        """Set an option."""

    def add_handle(self, easy: Easy) -> None:
        """Start a transfer."""

    def remove_handle(self, easy: Easy) -> None:
        """Remove a transfer in any state."""

    def socket_action(self, fd: int, events: int) -> tuple[int, int]:
        """Report an event on a socket; returns the number of running transfers."""
        ...

    def info_read(self) -> tuple[int, list[Easy], list[tuple[Easy, int, str]]]:
        """The number of further messages, successful transfers, and failed transfers with code and message."""
        ...

    def close(self) -> None:
        """Close all connections."""


class LibCurl(Protocol):
    """The module `pycurl`."""

    error: type[Exception]

    def Curl(self) -> Easy:  # noqa: N802  (the module's own name)
        """A new handle."""
        ...

    def CurlMulti(self) -> Multi:  # noqa: N802
        """A new multi handle."""
        ...

    def easy_strerror(self, code: int) -> str:
        """A fixed text for an error code."""
        ...

    def __getattr__(self, name: str) -> int:
        """A constant."""
        ...


@cache
def load() -> LibCurl:
    """Import pycurl. Raises ImportError where it is not installed."""
    return cast("LibCurl", importlib.import_module("pycurl"))


@cache
def system_ca_file() -> str:
    """The system's file of trusted certificates; empty when it is in none of the known places."""
    for path in (os.environ.get("SSL_CERT_FILE", ""), *_CA_FILES):
        if path and os.access(path, os.R_OK):
            return path
    return ""
