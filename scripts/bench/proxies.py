"""Debian's nginx and nghttpx before an upstream: real TLS, real HTTP/2, on loopback, in a folder of their own.

Both take TLS with HTTP/1.1 and HTTP/2 (ALPN chooses) and, on a second port, clear text: HTTP/1.1 with nghttpx, HTTP/2
by prior knowledge with either. Towards the upstream they speak plain HTTP/1.1 and hold nothing back, so that a token
that the upstream sends is a token that leaves at once. Started by root they run as another user, as they do in the
world.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

USER = "www-data"  # Debian's nginx runs as this; base-passwd has it everywhere
PROGRAMS = {"nginx": "/usr/sbin/nginx", "nghttpx": "/usr/sbin/nghttpx"}
PACKAGES = {"nginx": "nginx", "nghttpx": "nghttp2-proxy"}
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 10.0

# A cancelled HTTP/2 stream must end the upstream's connection: nginx does so by itself (proxy_ignore_client_abort off).
_NGINX = Template("""\
daemon off;
worker_processes 1;
pid $folder/nginx.pid;
error_log $folder/error.log warn;
events { worker_connections $connections; }
http {
    access_log off;
    client_body_temp_path $folder/body;
    proxy_temp_path $folder/proxy;
    fastcgi_temp_path $folder/fastcgi;
    uwsgi_temp_path $folder/uwsgi;
    scgi_temp_path $folder/scgi;
    ssl_certificate $certificate;
    ssl_certificate_key $key;
    keepalive_requests 1000000;
    http2_max_concurrent_streams 128;
    upstream tokens { server $upstream; keepalive 512; keepalive_requests 1000000; }
    server {
        listen 127.0.0.1:$tls_port ssl http2 backlog=4096;
        listen 127.0.0.1:$clear_port http2 backlog=4096;
        location / {
            proxy_pass http://tokens;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }
    }
}
""")


@dataclass(frozen=True)
class Certificate:
    """A key and a certificate for localhost that vouches for itself: trust `certificate` to trust the server."""

    key: Path
    certificate: Path


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs, and how to reach it."""

    name: str
    pid: int
    tls_port: int
    clear_port: int  # HTTP/2 by prior knowledge
    certificate: Path  # to trust
    log: Path

    @property
    def tls_url(self) -> str:
        """Over TLS; HTTP/1.1 or HTTP/2, as ALPN has it."""
        return f"https://localhost:{self.tls_port}"

    @property
    def clear_url(self) -> str:
        """In the clear; HTTP/2 by prior knowledge."""
        return f"http://localhost:{self.clear_port}"


def make_certificate(folder: Path) -> Certificate:
    """A new key with a certificate for localhost and 127.0.0.1, good for two days. RuntimeError in openssl's words."""
    made = Certificate(folder / "key.pem", folder / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"openssl made no certificate: {done.stderr.strip()}")
    return made


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until all are known, so that they differ."""
    with contextlib.ExitStack() as held:
        return [int(held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]) for _ in range(count)]


def _nginx_command(folder: Path, made: Certificate, upstream: str, tls_port: int, clear_port: int) -> list[str]:
    hard_limit = min(os.sysconf("SC_OPEN_MAX"), 16_384)
    configuration = _NGINX.substitute(
        folder=folder,
        certificate=made.certificate,
        key=made.key,
        upstream=f"unix:{upstream}" if upstream.startswith("/") else upstream,
        tls_port=tls_port,
        clear_port=clear_port,
        connections=hard_limit,
    )
    file = folder / "nginx.conf"
    file.write_text(configuration)
    return [PROGRAMS["nginx"], "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]


def _nghttpx_command(folder: Path, made: Certificate, upstream: str, tls_port: int, clear_port: int) -> list[str]:
    backend = f"unix:{upstream}" if upstream.startswith("/") else upstream.replace(":", ",")
    empty = folder / "nghttpx.conf"  # in place of the machine's own
    empty.write_text("")
    return [
        PROGRAMS["nghttpx"],
        f"--conf={empty}",
        f"--frontend=127.0.0.1,{tls_port}",
        f"--frontend=127.0.0.1,{clear_port};no-tls",
        f"--backend={backend}",
        "--workers=1",
        f"--errorlog-file={folder / 'error.log'}",
        "--log-level=WARN",
        "--no-via",
        str(made.key),
        str(made.certificate),
    ]


_COMMANDS: dict[str, Callable[[Path, Certificate, str, int, int], list[str]]] = {
    "nginx": _nginx_command,
    "nghttpx": _nghttpx_command,
}


def _give_to_user(folder: Path) -> None:
    """Everything in the folder becomes the other user's, so that it can read its key and write its log."""
    owner = pwd.getpwnam(USER)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _wait_until_listening(process: subprocess.Popen[bytes], ports: tuple[int, ...], log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    for port in ports:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            code = process.poll()
            if code is not None or time.monotonic() > deadline_s:
                what = f"ended with {code}" if code is not None else f"does not listen after {_START_TIMEOUT_S:g} s"
                raise RuntimeError(f"{process.args!r} {what}: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # both end at once on SIGTERM, streams or not
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextlib.contextmanager
def running(name: str, upstream: str) -> Generator[Proxy]:
    """Run the proxy called `name` before `upstream`, a HOST:PORT or a Unix socket's path. RuntimeError if it fails."""
    if not Path(PROGRAMS[name]).exists():
        raise RuntimeError(f"{PROGRAMS[name]} is not here: apt-get install --no-install-recommends {PACKAGES[name]}")
    # Not below a folder that only root may enter, as pytest's are.
    folder = Path(tempfile.mkdtemp(prefix=f"streaming-daemon-{name}-"))
    try:
        made = make_certificate(folder)
        tls_port, clear_port = _free_ports(2)
        command = _COMMANDS[name](folder, made, upstream, tls_port, clear_port)
        log = folder / "console.log"
        log.touch()
        user, groups = None, None
        if os.geteuid() == 0:
            _give_to_user(folder)
            user, groups = USER, [pwd.getpwnam(USER).pw_gid]
        with log.open("wb") as console:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                user=user,
                group=groups[0] if groups else None,
                extra_groups=groups,
                start_new_session=True,  # nginx signals its whole group
            )
        try:
            _wait_until_listening(process, (tls_port, clear_port), log)
            yield Proxy(name, process.pid, tls_port, clear_port, made.certificate, log)
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder)
