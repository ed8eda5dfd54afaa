"""docs/http-clients.md: every example is run against a daemon, and must do what the document says."""

# Selenium's own annotations leave out what its dictionaries and arguments hold.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import http.server
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviour.daemon_process import ROOT
from tests.behaviour.http_helpers import Front, http_config, serving, tokens_of
from tests.browser import running_chromium
from tests.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

DOCUMENT = (ROOT / "docs" / "http-clients.md").read_text(encoding="utf-8")
STARTED = 'streaming_daemon_requests_total{status="started"}'
URL = "http://127.0.0.1:8000"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
PRINTING = [
    (language, code, shown)
    for (language, code), (kind, shown) in itertools.pairwise(BLOCKS)
    if language in {"sh", "python"} and kind == "text"
]
SCRIPTS = [code for language, code in BLOCKS if language == "js"]


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Another site</title>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base's)
        """Nothing is said."""


@contextlib.contextmanager
def site() -> Generator[str]:
    """An origin with an empty page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(name="own_site", scope="module")
def _own_site() -> Iterator[str]:
    with site() as origin:
        yield origin


@pytest.fixture(name="front", scope="module")
def _front(own_site: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("clients")
    # Handoffs get the mock's messages.
    configuration = http_config({"cors_origins": [own_site]}, '[backend.test_model]\nenabled = "on"', backend="mock")
    with serving("io_uring", directory, configuration, "--delay", "5") as front:
        yield front


@pytest.fixture(name="browser", scope="module")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with running_chromium(tmp_path_factory.mktemp("chromium")) as driver:
        driver.set_script_timeout(20)
        yield driver


def test_the_document_has_what_is_tried() -> None:
    assert [language for language, _, _ in PRINTING] == ["sh", "python", "python", "python"]
    assert len(BLOCKS) == 2 * len(PRINTING) + len(SCRIPTS)
    assert len(SCRIPTS) == 2


@pytest.mark.parametrize(("language", "code", "shown"), PRINTING, ids=["curl", "openai", "errors", "langchain"])
def test_examples_print_what_the_document_says(front: Front, language: str, code: str, shown: str) -> None:
    assert URL in code
    command = ["bash", "-c"] if language == "sh" else [sys.executable, "-c"]
    ran = subprocess.run(
        [*command, code.replace(URL, front.url)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == shown


@pytest.mark.parametrize("option", ["--http1.0", "--http1.1", "--http2", "--compressed", "--expect100-timeout"])
def test_curl_in_its_other_ways(front: Front, option: str) -> None:
    # --http2 offers h2c in a POST with a body; a body beyond 1 MiB waits for `100 Continue`.
    prompt = "x" * (1 << 21) if option == "--expect100-timeout" else "Hello"
    fields = f'{{"model": "test-model", "prompt": "{prompt}", "max_tokens": 2, "stream": true}}'
    options = [option, "20"] if option == "--expect100-timeout" else [option]
    kind = "Content-Type: application/json"
    command = ["curl", "-sSN", *options, "-H", kind, "--data-binary", "@-", f"{front.url}/v1/completions"]
    ran = subprocess.run(command, input=fields, capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("token_") == 2
    assert ran.stdout.endswith("data: [DONE]\n\n")


def asked(browser: Chrome, front: Front) -> list[str]:
    """What the first script shows on the page that is open; the error that it throws at last."""
    call = """
        const [url, done] = arguments, shown = [];
        const asked = ask(url, "Hello", (text) => shown.push(text));
        asked.then(() => done(shown), (error) => done([...shown, String(error)]));
    """
    found: list[str] = browser.execute_async_script(SCRIPTS[0] + call, front.url)
    return found


@pytest.mark.browser
def test_a_page_of_a_listed_origin_may_ask(front: Front, browser: Chrome, own_site: str) -> None:
    browser.get(own_site)
    assert "".join(asked(browser, front)) == tokens_of(3)
    # An error is shown to the page as well, with its headers.
    failing = """
        const [url, done] = arguments;
        fetch(`${url}/v1/completions`, {method: "POST", headers: {"Content-Type": "application/json"}, body: "{"})
          .then(async (answer) => {
            const error = (await answer.json()).error;
            done([answer.status, error.code, answer.headers.has("x-request-id")]);
          });
    """
    found: Any = browser.execute_async_script(failing, front.url)
    assert found == [400, "malformed_json", True]


@pytest.mark.browser
def test_a_page_of_another_origin_may_not(front: Front, browser: Chrome) -> None:
    before = front.daemon.metric(STARTED)
    with site() as origin:
        browser.get(origin)
        assert asked(browser, front) == ["TypeError: Failed to fetch"]
        # Without a type that must be asked for first, the request is sent: it is refused before it costs anything.
        simple = """
            const [url, done] = arguments;
            fetch(`${url}/v1/completions`, {method: "POST", mode: "no-cors", body: '{"model":"test-model"}'})
              .then((answer) => done([answer.type, answer.status]), (error) => done([String(error)]));
        """
        found: Any = browser.execute_async_script(simple, front.url)
        assert found == ["opaque", 0]
    front.is_well()  # which takes two streams
    front.daemon.wait_for_metric(STARTED, before + 2)


@pytest.mark.browser
def test_an_event_source_behind_an_application_of_ones_own(front: Front, browser: Chrome, tmp_path: Path) -> None:
    port = unused_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DAEMON_SOCKET": str(front.daemon.socket_path)}
    log = tmp_path / "application.log"
    with log.open("wb") as file:
        command = [sys.executable, str(ROOT / "examples" / "handing_over.py"), str(port)]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        deadline_s = time.monotonic() + 30
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.05)
        browser.get(f"http://127.0.0.1:{port}/openapi.json")
        call = "const done = arguments[0], shown = []; listen('/chat', (text) => shown.push(text), () => done(shown));"
        shown: list[str] = browser.execute_async_script(SCRIPTS[1] + call)
        assert len(shown) == 18
    finally:
        process.terminate()
        process.wait()
