"""A certificate for localhost, made once a process with the `openssl` command."""

from __future__ import annotations

import atexit
import shutil
import ssl
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """Signed by itself, so it is its own authority."""

    certificate_file: Path
    key_file: Path


@cache
def make_certificate(name: str = "localhost", key: str = "ec") -> Certificate:
    """For this name and 127.0.0.1, with a key of this type: "ec" or "rsa"."""
    kind = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1") if key == "ec" else ("rsa:2048",)
    directory = Path(tempfile.mkdtemp(prefix="upstream-certificate-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", *kind, "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
            *("-keyout", str(made.key_file), "-out", str(made.certificate_file)),
        ],
        check=True,
        capture_output=True,
    )
    return made


def server_context(certificate: Certificate, protocols: tuple[str, ...]) -> ssl.SSLContext:
    """For a listener that offers these by ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate_file, certificate.key_file)
    context.set_alpn_protocols(list(protocols))
    return context
