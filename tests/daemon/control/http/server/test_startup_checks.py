"""Mistakes in [http] are said by --check-config as at start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from config.http import Http
from daemon.control.http.server.startup_checks import check, parse_address
from daemon.control.process.exit_codes import EXIT_CONFIGURATION, StartError

ROOT = Path(__file__).resolve().parents[5]
WRONG = {
    "no port": ({"listen": "127.0.0.1"}, "not an address and port"),
    "a port too large": ({"listen": "127.0.0.1:99999"}, "not an address and port"),
    "anybody": ({"listen": "0.0.0.0:8100"}, "set http.api_keys_file"),
    "no such name": ({"listen": "nonexistent.invalid:8100"}, "http.listen"),
    "no keys": ({"api_keys_file": "/nonexistent/keys"}, "cannot be read"),
    "a certificate alone": ({"tls_certificate_file": "/tmp/a.pem"}, "belong together"),
    "no certificate": ({"tls_certificate_file": "/nonexistent/a", "tls_key_file": "/nonexistent/b"}, "cannot be read"),
    "no PEM": ({"tls_certificate_file": "/etc/hostname", "tls_key_file": "/etc/hostname"}, "is not a PEM file"),
    "a host as origin": ({"cors_origins": ("example.com",)}, "is not an origin"),
    "an origin with a path": ({"cors_origins": ("https://example.com/",)}, "is not an origin"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    fields, said = WRONG[name]
    with pytest.raises(StartError, match=said) as raised:
        check(Http(**fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert raised.value.exit_status == EXIT_CONFIGURATION


@pytest.mark.parametrize("origin", ["https://example.com", "http://localhost:3000", "*", "null"])
def test_origins_as_browsers_send_them(origin: str) -> None:
    check(Http(cors_origins=(origin,)))


@pytest.mark.parametrize(("listen", "host"), [("127.0.0.1:80", "127.0.0.1"), ("[::1]:80", "::1"), ("name:80", "name")])
def test_addresses(listen: str, host: str) -> None:
    assert parse_address(listen) == (host, 80)


def test_check_config_asks_too(tmp_path: Path) -> None:
    file = tmp_path / "daemon.toml"
    file.write_text('[http]\nlisten = "0.0.0.0:8100"\n')
    command = [sys.executable, "-m", "daemon", "--check-config", "--config", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EXIT_CONFIGURATION
    assert "http.allow_anonymous" in done.stderr
