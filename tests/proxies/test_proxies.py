"""The proxies themselves, asked by curl: they speak what they are here to speak, and hold no token back.

What the daemon does through them is in test_relay_through_proxies.py; where that fails and this does not, it is the
daemon.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from scripts.bench import proxies
from scripts.bench.tables import render
from scripts.bench.upstreams import answer_of
from tests.proxies.conftest import INTERVAL_MS, TOKENS
from tests.scripts.bench.chunks import without_chunks

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.bench.proxies import Proxy
    from scripts.bench.upstreams import Upstream

pytestmark = pytest.mark.external

WAIT_SECONDS_MAX = 5.0


def curl(proxy: Proxy, number: int, *options: str, url: str = "") -> list[str]:
    body = f'{{"prompt":"benchmark stream {number}"}}'
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--cacert", str(proxy.certificate), "--data", body]
    return [*command, *options, (url or proxy.tls_url) + "/v1/chat/completions"]


def body_of(number: int) -> bytes:
    return without_chunks(render(answer_of(TOKENS)[0], number).partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    ("option", "version", "is_clear"),
    [("--http1.1", "1.1", False), ("--http2", "2", False), ("--http2-prior-knowledge", "2", True)],
)
def test_every_byte_comes_through(proxy: Proxy, option: str, version: str, *, is_clear: bool) -> None:
    url = proxy.clear_url if is_clear else proxy.tls_url
    command = curl(proxy, 11_000_000, option, "--write-out", "%{stderr}%{http_version} %{http_code}", url=url)
    done = subprocess.run(command, check=True, capture_output=True, timeout=20)
    assert done.stderr.decode() == f"{version} 200"
    assert done.stdout == body_of(11_000_000)


def test_tokens_are_not_held_back(proxy: Proxy) -> None:
    with subprocess.Popen(curl(proxy, 11_000_001, "--http2"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b'"finish_reason":null}]}\n')
        first_s = time.monotonic()
        process.stdout.read()
        took_s = time.monotonic() - first_s
    assert took_s > (TOKENS - 1) * INTERVAL_MS / 1000 * 0.8, "all came at once"


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_a_client_that_leaves_is_known_upstream(proxy: Proxy, upstream: Upstream, option: str) -> None:
    number = 11_000_002 + len(option)
    with subprocess.Popen(curl(proxy, number, option), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    deadline_s = time.monotonic() + WAIT_SECONDS_MAX
    while not upstream.story(number).closed_ns:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_the_certificate_must_be_trusted(proxy: Proxy) -> None:
    command = curl(proxy, 11_000_003)
    del command[command.index("--cacert") : command.index("--cacert") + 2]
    done = subprocess.run(command, check=False, capture_output=True, timeout=20)
    assert done.returncode == 60  # curl: the peer's certificate is not known


def test_it_runs_as_another_user(proxy: Proxy) -> None:
    wanted = pwd.getpwnam(proxies.USER).pw_uid if os.geteuid() == 0 else os.geteuid()
    assert os.stat(f"/proc/{proxy.pid}").st_uid == wanted


def test_a_program_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(proxies.PROGRAMS, "nginx", "/nowhere/nginx")
    with (
        pytest.raises(RuntimeError, match="apt-get install --no-install-recommends nginx"),
        proxies.running("nginx", ""),
    ):
        pass


def test_a_proxy_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "nginx"
    broken.write_text("#!/bin/sh\necho no licence today\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setitem(proxies.PROGRAMS, "nginx", str(broken))
    monkeypatch.setattr(proxies, "USER", pwd.getpwuid(os.geteuid()).pw_name)
    with pytest.raises(RuntimeError, match="ended with 3: no licence today"), proxies.running("nginx", "127.0.0.1:1"):
        pass
