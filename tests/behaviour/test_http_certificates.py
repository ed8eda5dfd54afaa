"""Certificates of the HTTP front that are renewed while it serves: handshakes after SIGHUP have the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.http_helpers import CHAT, Front, Wire, get, http_config, post, relayed, serving
from tests.upstream import Gate, Plan, Upstream, openai_stream
from tests.upstream.certificate import Certificate, make_certificate

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

FIRST, RENEWED = make_certificate("localhost", "rsa"), make_certificate("renewed.example", "ec")
RELOADS = 'streaming_daemon_config_reloads_total{result="%s"}'


@dataclass
class Files:
    """What the settings name."""

    certificate: Path
    key: Path

    def put(self, made: Certificate) -> None:
        """Replace both, as a renewal does."""
        for source, target in ((made.certificate_file, self.certificate), (made.key_file, self.key)):
            new = target.with_suffix(".new")
            shutil.copy(source, new)
            new.replace(target)


def der_of(made: Certificate) -> bytes:
    """The certificate as a handshake has it."""
    return ssl.PEM_cert_to_DER_cert(made.certificate_file.read_text())


def shown(front: Front, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, name: str | None = "localhost") -> bytes:
    """The certificate that a new client sees. `name` is the server's as the client says it."""
    with connected(front, version, name) as (client, certificate):
        client.send(get("/health"))
        assert client.reply().status == 200
        return certificate


@contextlib.contextmanager
def connected(
    front: Front, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, name: str | None = "localhost"
) -> Generator[tuple[Wire, bytes]]:
    """A connection that takes any certificate, and which one that was."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as plain:
        client = context.wrap_socket(plain, server_hostname=name)
        certificate = client.getpeercert(binary_form=True)
        assert certificate
        with Wire(client) as wire:
            yield wire, certificate


def reload(front: Front, result: str) -> None:
    """SIGHUP, which must come out so."""
    name = RELOADS % result
    before = front.daemon.metric(name)
    assert front.daemon.process is not None
    front.daemon.process.send_signal(signal.SIGHUP)
    front.daemon.wait_for_metric(name, before + 1)


def settings_of(files: Files) -> dict[str, object]:
    """HTTPS with these."""
    return {"tls_certificate_file": str(files.certificate), "tls_key_file": str(files.key)}


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    files = Files(tmp_path / "certificate.pem", tmp_path / "key.pem")
    files.put(FIRST)
    return files


def test_a_renewed_certificate_is_used_from_the_next_handshake_on(kernel: str, tmp_path: Path, files: Files) -> None:
    gate = Gate()
    with Upstream() as upstream:
        events = openai_stream(["a", "b", "c"])
        upstream.answer("some-model", Plan([*events[:2], gate, *events[2:]]))
        configuration = http_config(settings_of(files), relayed(upstream, {"some-model": "up"}), backend="openai")
        with serving(kernel, tmp_path, configuration) as front, contextlib.ExitStack() as stack:
            assert shown(front) == der_of(FIRST)
            kept, _ = stack.enter_context(connected(front))
            streamed, _ = stack.enter_context(connected(front))
            said = {"model": "some-model", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
            streamed.send(post(CHAT, said))
            upstream.wait_for_requests(1)
            files.put(RENEWED)
            assert shown(front) == der_of(FIRST), "nothing changes before the signal"
            reload(front, "ok")
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                for name in ("localhost", "renewed.example", None):
                    assert shown(front, version, name) == der_of(RENEWED)
            kept.send(get("/health"))
            assert kept.reply().status == 200, "connections go on as they began"
            gate.open()
            reply = streamed.reply()
            assert reply.is_whole
            assert reply.body.endswith(b"data: [DONE]\n\n")
            assert "http.tls_certificate_file and http.tls_key_file were read again" in front.daemon.log
            files.put(FIRST)
            reload(front, "ok")
            assert shown(front) == der_of(FIRST)


def test_a_renewal_that_is_broken_changes_nothing_and_says_so(kernel: str, tmp_path: Path, files: Files) -> None:
    with serving(kernel, tmp_path, http_config(settings_of(files))) as front:
        for name, spoil, said in (
            ("another's key", lambda: shutil.copy(RENEWED.key_file, files.key), "do not match"),
            ("no key", files.key.unlink, "cannot be read: No such file or directory"),
            ("half a certificate", lambda: os.truncate(files.certificate, 200), "or one of them is damaged"),
            ("no PEM", lambda: files.certificate.write_text("renewed"), "is not a PEM file"),
            ("nothing to read at once", lambda: pipe_at(files.certificate), "is not a PEM file"),
            ("a passphrase", lambda: encrypt(files.key), "has a passphrase"),
        ):
            files.put(FIRST)
            spoil()
            length = len(front.daemon.log)
            reload(front, "failed")
            news = front.daemon.log[length:]
            assert "the certificate in force stays: http.tls_" in news, name
            assert said in news, name
            assert shown(front) == der_of(FIRST), name
            files.certificate.unlink()  # it may be a pipe
        files.put(RENEWED)
        reload(front, "ok")
        assert shown(front) == der_of(RENEWED)
        assert "PRIVATE KEY" not in front.daemon.log


def pipe_at(path: Path) -> None:
    """What would be waited for."""
    path.unlink()
    os.mkfifo(path)


def encrypt(path: Path) -> None:
    """Protect the key by a passphrase."""
    command = ["openssl", "pkcs8", "-topk8", "-in", str(path), "-out", f"{path}.new", "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)
    shutil.move(f"{path}.new", path)
