"""What we use of pycurl, with types: it has none of its own. It is imported when a transfer is first begun: 6 MB."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any, Protocol, cast

# CURLcodes that pycurl has no names for.
E_HTTP2_STREAM = 92
E_TOO_LARGE = 100

# Where distributions keep the certificates they trust; the wheel's own libcurl knows its build machine's place alone.
_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)


class Easy(Protocol):
    """A `pycurl.Curl`: one transfer's options, and its progress once it is in a Multi."""

    def setopt(self, option: int, value: object) -> None:
        """Set an option."""

    def getinfo(self, option: int) -> Any:  # noqa: ANN401  (depends on the option)
        """What is known of a transfer that has ended."""

    def pause(self, bitmask: int) -> None:
        """Stop or continue sending and receiving."""

    def reset(self) -> None:
        """Forget all options, and what they refer to."""

    def close(self) -> None:
        """Free it."""


class Multi(Protocol):
    """A `pycurl.CurlMulti`: transfers and the connections they share."""

    def setopt(self, option: int, value: object) -> None:
        """Set an option."""

    def add_handle(self, easy: Easy) -> None:
        """Begin a transfer."""

    def remove_handle(self, easy: Easy) -> None:
        """End a transfer wherever it is."""

    def socket_action(self, fd: int, events: int) -> tuple[int, int]:
        """Something happened on a socket; how many transfers go on."""
        ...

    def info_read(self) -> tuple[int, list[Easy], list[tuple[Easy, int, str]]]:
        """How many more there are, transfers that have succeeded, and those that failed with code and message."""
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
        """A new set of transfers."""
        ...

    def easy_strerror(self, code: int) -> str:
        """What a code means: a fixed text."""
        ...

    def __getattr__(self, name: str) -> int:
        """A constant."""
        ...


@cache
def load() -> LibCurl:
    """Import it. Raises ImportError where it is not installed."""
    return cast("LibCurl", importlib.import_module("pycurl"))


@cache
def system_ca_file() -> str:
    """The certificates this system trusts; empty where they are in no place that is known."""
    for path in (os.environ.get("SSL_CERT_FILE", ""), *_CA_FILES):
        if path and os.access(path, os.R_OK):
            return path
    return ""
