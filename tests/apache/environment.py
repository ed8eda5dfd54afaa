"""A real Apache and a real daemon for the end-to-end tests (scripts/private_apache.py), with what only tests need.

What is missing is an error and never a skip: a test that did not run must not look like one that passed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.private_apache import (
    FPM_PATTERN,
    NEEDED,
    ROOT,
    WORKER_COUNT,
    Apache,
    PhpKind,
    build_stand_in,
    prepare_site,
    require_packages,
    running_apache,
    running_daemon,
)
from tests.ports import unused_port

__all__ = [
    "CHROMEDRIVER",
    "CHROMIUM",
    "REPOSITORY",
    "WORKER_COUNT",
    "Apache",
    "Site",
    "running_daemon",
    "running_site",
]

REPOSITORY = ROOT
HERE = Path(__file__).resolve().parent
CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
NEEDED_BY_TESTS = NEEDED | {
    f"/usr/sbin/{FPM_PATTERN}": "php-fpm",
    str(CHROMIUM): "chromium",
    str(CHROMEDRIVER): "chromium-driver",
    "/usr/bin/curl": "curl",
    "/usr/bin/openssl": "openssl",
}

# Hosts beside the example's, on ports of their own: one that ends TLS and speaks HTTP/2 too, one whose administrator
# says by hand that TLS ended in front of it, and one that says nothing of handoffs.
OTHER_HOSTS = """\
Listen 127.0.0.1:{tls_port}
Listen 127.0.0.1:{proxied_port}
Listen 127.0.0.1:{silent_port}
DocumentRoot $root/htdocs
SetEnv STREAMING_DAEMON_SOCKET $root/sockets/daemon.sock
SetEnv STREAMING_DEMO_USER_ID 1
<Directory $root/htdocs>
    Require local
</Directory>
<VirtualHost 127.0.0.1:{tls_port}>
    SSLEngine on
    SSLCertificateFile $root/certificate.pem
    SSLCertificateKeyFile $root/key.pem
    Protocols h2 http/1.1
    SocketHandoffEnabled On
    SocketHandoffAllowedPrefix $root/sockets
</VirtualHost>
<VirtualHost 127.0.0.1:{proxied_port}>
    SetEnvIf X-Forwarded-Proto https HTTPS=on
    Protocols h2c http/1.1
    SocketHandoffEnabled On
    SocketHandoffAllowedPrefix $root/sockets
</VirtualHost>
<VirtualHost 127.0.0.1:{silent_port}>
    ServerName silent.localhost
</VirtualHost>
"""


@dataclass(frozen=True)
class Site(Apache):
    """The example site, and other hosts of the same Apache."""

    tls_port: int
    proxied_port: int
    silent_port: int

    @property
    def certificate(self) -> Path:
        return self.root / "certificate.pem"


def make_certificate(root: Path) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(root / "key.pem"), "-out", str(root / "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-days", "2", *subject, *files], check=True, capture_output=True)


@contextmanager
def running_site(php: PhpKind = "mod_php") -> Generator[Site]:
    """Apache with the example site and the other hosts, in a folder of its own that is gone afterwards."""
    require_packages(NEEDED_BY_TESTS)
    # Not pytest's tmp_path: that is closed to Apache's user, and often longer than a Unix socket's path may be.
    root = Path(tempfile.mkdtemp(prefix="streaming-daemon-apache-"))
    ports = {name: unused_port() for name in ("tls_port", "proxied_port", "silent_port")}
    try:
        module = build_stand_in(root)
        make_certificate(root)
        prepare_site(root, sorted((HERE / "htdocs").glob("*.php")))
        with running_apache(root, module, unused_port(), php=php, extra=OTHER_HOSTS.format(**ports)) as running:
            yield Site(running.root, running.port, **ports)
    finally:
        shutil.rmtree(root)
